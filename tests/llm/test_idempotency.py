"""`Idempotency-Key` over HTTP and a real PostgreSQL.

A key has one answer and one upstream call, across replicas and restarts.
"""

import asyncio
from contextlib import AsyncExitStack

import httpx
import psycopg
import pytest

from contracts.errors import DatabaseUnavailable
from services.llm.idempotency import IdempotencyTimes
from tests.support.llm.answers import llm_replica
from tests.support.llm.batches import CALM, PATIENCE_S
from tests.support.llm.proxy import CALLER
from tests.support.llm.replica_process import ReplicaProcess
from tests.support.llm.upstream import play

BODY = {"model": "plain", "messages": [{"role": "user", "content": "hi"}], "metadata": CALLER}
KEY = {"Idempotency-Key": "k-1"}


def ask(replica, body=BODY, **headers):
    return replica.client.post("/proxy", json=body, headers={**KEY, **headers})


async def test_the_same_key_and_body_get_the_stored_answer(database_url, upstream):
    async with llm_replica(database_url, upstream.base_url) as replica:
        first = await ask(replica)
        assert "Idempotent-Replayed" not in first.headers
        upstream.script(play("ok", text="something else"))
        for body in (BODY, {**BODY, "timeout_s": 5}):
            again = await ask(replica, body)
            assert (again.status_code, again.content) == (200, first.content)
            assert again.headers["Idempotent-Replayed"] == "true"
        assert upstream.total == 1
        assert len(replica.recorder.records) == 1
    async with llm_replica(database_url, upstream.base_url) as another:
        assert (await ask(another)).content == first.content
        assert (await another.client.post("/proxy", json=BODY)).json()[
            "content"
        ] == "something else"


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "ho"}]},
        {"max_tokens": 3},
        {"model": "spare"},
        {"metadata": {**CALLER, "channel_id": "c"}},
    ],
    ids=str,
)
async def test_another_body_under_the_same_key_is_a_conflict(database_url, upstream, change):
    async with llm_replica(database_url, upstream.base_url) as replica:
        await ask(replica)
        refused = await ask(replica, {**BODY, **change})
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["retryable"]) == (
            409,
            "idempotency_conflict",
            False,
        )
        assert upstream.total == 1


async def test_keys_are_an_agents_own(database_url, upstream):
    async with llm_replica(database_url, upstream.base_url) as replica:
        for metadata in (
            CALLER,
            {**CALLER, "microdao_id": "microdao:8"},
            {**CALLER, "agent_id": "agent:other"},
        ):
            body = {
                **BODY,
                "messages": [{"role": "user", "content": str(metadata)}],
                "metadata": metadata,
            }
            answer = await ask(replica, body)
            assert answer.json()["content"] == f"Echo: {metadata}"
            assert "Idempotent-Replayed" not in answer.headers
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute("SET ROLE daarion_service")
            assert (
                await (await connection.execute("SELECT count(*) FROM llm_idempotency")).fetchone()
            )[0] == 0


async def test_callers_at_the_same_time_at_two_replicas_share_one_call(database_url, upstream):
    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(llm_replica(database_url, upstream.base_url, **CALM))
            for _ in range(2)
        ]
        upstream.script(play("slow", wait_s=0.7))
        body = {**BODY, "model": "calm"}
        answers = await asyncio.gather(*(ask(replicas[number % 2], body) for number in range(10)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert upstream.total == 1


async def test_a_waiting_callers_deadline_holds(database_url, upstream):
    async with llm_replica(database_url, upstream.base_url, **CALM) as replica:
        upstream.script(play("slow", wait_s=2))
        body = {**BODY, "model": "calm"}
        first = asyncio.create_task(ask(replica, body))
        await upstream.wait_for(requests=1, timeout_s=PATIENCE_S)
        late = await ask(replica, {**body, "timeout_s": 0.2})
        assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline_exceeded")
        assert (await first).status_code == 200
        assert upstream.total == 1


async def test_a_caller_who_left_finds_the_answer_when_it_comes_back(database_url, upstream):
    async with llm_replica(database_url, upstream.base_url, **CALM) as replica:
        upstream.script(play("slow", wait_s=0.5))
        body = {**BODY, "model": "calm"}
        first = asyncio.create_task(ask(replica, body))
        await upstream.wait_for(requests=1, timeout_s=PATIENCE_S)
        first.cancel()
        answer = await ask(replica, body)
        assert (answer.status_code, answer.json()["content"]) == (200, "Echo: hi")
        assert (upstream.total, upstream.cancelled) == (1, 0)


@pytest.mark.parametrize("failure", ["truncated_json", "http_401", "silence"])
async def test_a_failure_that_is_not_the_requests_leaves_the_key_free(
    database_url, upstream, failure
):
    hasty = {
        "provider": "backup",
        "name": "m",
        "timeouts": {"total_s": 0.5 if failure == "silence" else 30},
    }
    async with llm_replica(database_url, upstream.base_url, hasty=hasty) as replica:
        upstream.script(failure)
        body = {**BODY, "model": "hasty"}
        assert (await ask(replica, body)).status_code in {502, 504}
        upstream.script("ok")
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await ask(replica, body)).status_code != 200:
                await asyncio.sleep(0.1)
        assert "Idempotent-Replayed" not in answer.headers


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [("context_length", "context_length_exceeded"), ("content_filter", "content_filtered")],
)
async def test_a_refusal_of_the_request_itself_is_stored(database_url, upstream, refusal, kind):
    async with llm_replica(database_url, upstream.base_url) as replica:
        upstream.script(refusal)
        first = (await ask(replica)).json()["error"]
        upstream.script("ok")
        second = await ask(replica)
        assert second.status_code == 400
        assert first["type"] == second.json()["error"]["type"] == kind
        assert first["message"] == second.json()["error"]["message"]
        assert upstream.total == 1


async def test_without_the_database_nothing_is_called(database_url, upstream):
    async with llm_replica(database_url, upstream.base_url) as replica:

        async def away(*_arguments):
            raise DatabaseUnavailable("the database cannot be reached; try again")

        replica.runtime._keys.begin = away
        assert (await ask(replica)).status_code == 503
        assert upstream.total == 0
        assert (await replica.client.post("/proxy", json=BODY)).status_code == 200


async def test_a_key_that_is_too_long_is_refused_and_an_empty_one_is_ignored(
    database_url, upstream
):
    async with llm_replica(database_url, upstream.base_url) as replica:
        assert (await ask(replica, **{"Idempotency-Key": "x" * 1_025})).status_code == 400
        for _ in range(2):
            assert (
                "Idempotent-Replayed"
                not in (await ask(replica, **{"Idempotency-Key": " "})).headers
            )
        assert upstream.total == 2


async def test_an_attempt_that_lost_its_key_returns_the_stored_answer(
    database_url, database_owner_url, upstream
):
    hasty = IdempotencyTimes(lease_s=0.3, renew_every_s=60.0, poll_every_s=0.02, max_poll_s=0.1)
    async with llm_replica(database_url, upstream.base_url, times=hasty, **CALM) as replica:
        upstream.script(
            play("slow", wait_s=2, text="the late one"), play("ok", text="the first to end")
        )
        body = {**BODY, "model": "calm"}
        slow = asyncio.create_task(ask(replica, body))
        await upstream.wait_for(requests=1, timeout_s=PATIENCE_S)
        assert (await ask(replica, body)).json()["content"] == "the first to end"
        assert (await slow).json()["content"] == "the first to end"


async def test_the_retention_ends(database_url, database_owner_url, upstream):
    async with llm_replica(database_url, upstream.base_url) as replica:
        await ask(replica)
        async with await psycopg.AsyncConnection.connect(
            database_owner_url, autocommit=True
        ) as connection:
            await connection.execute(
                "UPDATE llm_idempotency SET expires_at = now() - interval '1 second'"
            )
            other = {**BODY, "max_tokens": 9}
            assert (await ask(replica, other)).status_code == 200
            await connection.execute(
                "UPDATE llm_idempotency SET expires_at = now() - interval '1 second'"
            )
            await replica.runtime._purge()
            assert (
                await (await connection.execute("SELECT count(*) FROM llm_idempotency")).fetchone()
            )[0] == 0


async def test_a_killed_replicas_key_is_taken_over(database_url, upstream):
    process = ReplicaProcess(database_url, upstream.base_url)
    try:
        await process.start()
        upstream.script("silence")
        body = {**BODY, "model": "calm"}
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            first = asyncio.create_task(client.post(f"{process.url}/proxy", json=body, headers=KEY))
            await upstream.wait_for(requests=1, timeout_s=PATIENCE_S)
            await process.kill()
            with pytest.raises(httpx.HTTPError):
                await first
        upstream.script("ok")
        async with llm_replica(database_url, upstream.base_url, **CALM) as replica:
            answer = await ask(replica, body)
            assert (answer.status_code, answer.json()["content"]) == (200, "Echo: hi")
            assert (await ask(replica, body)).content == answer.content
        assert upstream.total == 2
    finally:
        await process.kill()
