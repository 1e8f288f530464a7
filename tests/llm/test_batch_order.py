"""The order in which requests of batches are answered, and reasons for delay."""

import asyncio
import collections

import psycopg

from contracts.llm.limits import ANONYMOUS
from services.llm.batches import WorkerSettings
from tests.support.llm.answers import llm_replica
from tests.support.llm.batches import (
    CALM,
    OWN,
    PATIENCE_S,
    body_of,
    items_of,
    request,
    submit,
    wait_for,
)
from tests.support.llm.limits import InProcessAuthority
from tests.support.llm.proxy import CALLER
from tests.support.llm.upstream import play


async def test_a_limit_of_ours_postpones_and_fails_nothing(database_url, upstream):
    options = {"limit": 3, "source": InProcessAuthority()}
    async with llm_replica(database_url, upstream.base_url, **options) as replica:
        batch = (await submit(replica.client, [request(str(number)) for number in range(6)]))["id"]
        async with asyncio.timeout(PATIENCE_S):
            while not any(
                event["event"] == "llm.call" and event["outcome"] == "rate_limited"
                for event in replica.recorder.events
            ):
                await asyncio.sleep(0.02)
            while True:
                state = (await replica.client.get(f"/batch/{batch}", params=OWN)).json()
                if state["counts"]["succeeded"] == 3:
                    break
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert (state["status"], state["counts"]["succeeded"], state["counts"]["failed"]) == (
            "in_progress",
            3,
            0,
        )
        assert upstream.total == 3


async def test_transient_failures_are_retried_up_to_a_bound(database_url, upstream):
    sections = {"batch": {"concurrency": 1, "max_failures": 3}}
    models = {
        "flaky": {"provider": "backup", "name": "flaky"},
        "down": {"provider": "backup", "name": "down"},
    }
    async with llm_replica(database_url, upstream.base_url, sections=sections, **models) as replica:
        upstream.script(play("truncated_json", times=2), model="flaky")
        upstream.script("truncated_json", model="down")
        batch = (
            await submit(
                replica.client,
                [
                    request("a", model="flaky"),
                    request("b", model="down"),
                    request("c", model="nokey"),
                ],
            )
        )["id"]
        await wait_for(replica.client, batch)
        lines = {line["custom_id"]: line for line in await items_of(replica.client, batch)}
        assert lines["a"]["status"] == "succeeded"
        assert (lines["b"]["status"], lines["b"]["error"]["type"]) == (
            "failed",
            "upstream_invalid_response",
        )
        assert (lines["c"]["status"], lines["c"]["error"]["type"]) == (
            "failed",
            "model_unavailable",
        )


async def test_interactive_calls_take_all_slots_but_one(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 4}}, **CALM
    ) as replica:
        upstream.script("silence")
        body = body_of(request("x", model="calm"))
        waiting = [asyncio.create_task(replica.client.post("/proxy", json=body)) for _ in range(10)]
        await upstream.wait_for(requests=10, timeout_s=PATIENCE_S)
        await submit(replica.client, [request(str(number), model="calm") for number in range(20)])
        await upstream.wait_for(requests=11, timeout_s=PATIENCE_S)
        await asyncio.sleep(0.5)
        assert upstream.total == 11
        for task in waiting:
            task.cancel()
        await upstream.wait_for(requests=14, timeout_s=PATIENCE_S)
        await asyncio.sleep(0.5)
        assert upstream.total == 14


async def test_a_batch_is_worked_off_under_the_credential_that_submitted_it(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, secret="s3cret", sections={"batch": {"concurrency": 1}}
    ) as replica:
        assert (await replica.client.post("/proxy", json=body_of(request("x")))).status_code == 200
        batch = (await submit(replica.client, [request("a")]))["id"]
        await wait_for(replica.client, batch)
        direct, worked_off = (record.credential for record in replica.recorder.records)
        assert direct == worked_off != ANONYMOUS


async def test_batches_take_turns(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 1}}
    ) as replica:
        large = (await submit(replica.client, [request(str(number)) for number in range(200)]))[
            "id"
        ]
        small = (await submit(replica.client, [request("only")]))["id"]
        await wait_for(replica.client, small)
        assert (await replica.client.get(f"/batch/{large}", params=OWN)).json()["counts"][
            "succeeded"
        ] < 100


async def test_an_open_circuit_delays_no_other_model_and_ends_with_the_last_failure(
    database_url, upstream
):
    sections = {"batch": {"concurrency": 1, "max_failures": 50}}
    models = {"dead": {"provider": "backup", "name": "dead-upstream"}}
    worker = WorkerSettings(
        poll_every_s=0.1,
        lease_s=30.0,
        renew_every_s=0.3,
        backoff_s=0.1,
        backoff_max_s=0.4,
        stall_limit_s=1.5,
    )
    async with llm_replica(
        database_url, upstream.base_url, sections=sections, worker=worker, **models
    ) as replica:
        upstream.script("http_500", model="dead-upstream")
        requests = [
            request(str(number), model="plain" if number % 2 else "dead") for number in range(20)
        ]
        batch = (await submit(replica.client, requests))["id"]
        done = await wait_for(replica.client, batch)
        assert (done["counts"]["succeeded"], done["counts"]["failed"]) == (10, 10)
        lines = await items_of(replica.client, batch)
        assert {line["error"]["type"] for line in lines[::2]} == {"upstream_unavailable"}
        assert {line["status"] for line in lines[1::2]} == {"succeeded"}
        assert any(
            event["event"] == "llm.call" and event["outcome"] == "circuit_open"
            for event in replica.recorder.events
        )


async def test_many_batches_give_a_microdao_no_more_turns_than_one(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0}}
    ) as replica:
        for _ in range(10):
            await submit(replica.client, [request("a"), request("b")])
        other = [
            request(str(number), metadata={**CALLER, "microdao_id": "microdao:8"})
            for number in range(5)
        ]
        await submit(replica.client, other)
        queue = replica.runtime._queue
        claimed = [(await queue.lease(60.0)) for _ in range(10)]
        assert collections.Counter(work.microdao_id for work in claimed) == {
            "microdao:7": 5,
            "microdao:8": 5,
        }
        assert len({work.batch_id for work in claimed if work.microdao_id == "microdao:7"}) == 5
        rest = [(await queue.lease(60.0)) for _ in range(16)]
        assert (sum(work is not None for work in rest), rest[-1]) == (15, None)


async def test_the_turn_of_a_microdao_goes_with_its_last_batch_and_comes_with_its_next_one(
    database_url, database_owner_url, upstream
):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0}}
    ) as replica:
        queue = replica.runtime._queue
        batch = (await submit(replica.client, [request("a")]))["id"]

        async def turns():
            await queue.purge(1e9)
            async with await psycopg.AsyncConnection.connect(database_owner_url) as connection:
                return (
                    await (
                        await connection.execute("SELECT count(*) FROM llm_batch_turns")
                    ).fetchone()
                )[0]

        assert await turns() == 1
        await replica.client.delete(f"/batch/{batch}", params=OWN)
        assert (await turns(), await queue.lease(1.0)) == (0, None)
        await submit(replica.client, [request("a")])
        assert (await turns(), (await queue.lease(1.0)).microdao_id) == (1, "microdao:7")
