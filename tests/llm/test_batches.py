"""Batches over HTTP and a real PostgreSQL: each request one result, whatever dies meanwhile; tenants apart."""

import asyncio
import collections
import contextlib
import json
import signal
import socket
import sys
from pathlib import Path

import httpx
import psycopg
import pytest

from contracts.errors import DatabaseUnavailable
from contracts.llm.limits import ANONYMOUS
from services.llm.batches import WorkerSettings
from tests.support.llm.answers import llm_replica
from tests.support.llm.limits import InProcessAuthority
from tests.support.llm.proxy import CALLER
from tests.support.llm.upstream import ScriptedUpstream, play

REPOSITORY = Path(__file__).resolve().parents[2]
OWN, OTHER = {"microdao_id": "microdao:7"}, {"microdao_id": "microdao:8"}
CALM = {
    "calm": {
        "provider": "backup",
        "name": "m",
        "timeouts": {"first_token_s": 60, "idle_s": 60, "total_s": 60},
    }
}
PATIENCE_S = 60


def request(custom_id, text="hi", **changes):
    return {
        "custom_id": custom_id,
        "model": "plain",
        "messages": [{"role": "user", "content": text}],
        "metadata": CALLER,
        **changes,
    }


def body_of(item):
    return {name: value for name, value in item.items() if name != "custom_id"}


@pytest.fixture
async def upstream():
    async with ScriptedUpstream() as server:
        yield server


async def submit(client, requests):
    response = await client.post("/batch", json={"requests": requests})
    assert response.status_code == 202, response.text
    return response.json()


async def wait_for(client, batch_id, *, status="completed"):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            batch = (await client.get(f"/batch/{batch_id}", params=OWN)).json()
            if batch["status"] == status:
                return batch
            await asyncio.sleep(0.05)


async def items_of(client, batch_id):
    response = await client.get(f"/batch/{batch_id}/items", params=OWN)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


async def test_every_request_has_its_own_result_in_the_order_of_submission(database_url, upstream):
    async with llm_replica(database_url, upstream.base_url) as replica:
        requests = [request(f"c-{number}", f"Питання {number}") for number in range(40)]
        requests[3] = request("c-3", model="nope")
        requests[5] = request("c-5", "\u0000нуль")
        batch = await submit(replica.client, requests)
        assert batch["id"].startswith("batch-")
        assert (batch["status"], batch["counts"]["total"]) == ("in_progress", 40)
        done = await wait_for(replica.client, batch["id"])
        assert done["counts"] == {
            "total": 40,
            "pending": 0,
            "running": 0,
            "succeeded": 39,
            "failed": 1,
            "cancelled": 0,
        }
        assert done["ended_at"] >= done["created_at"]
        lines = await items_of(replica.client, batch["id"])
        assert [line["custom_id"] for line in lines] == [f"c-{number}" for number in range(40)]
        assert lines[7]["response"]["content"] == "Echo: Питання 7"
        assert lines[5]["response"]["content"] == "Echo: \u0000нуль"
        assert lines[7]["response"]["usage"]["total_tokens"] > 0
        assert (lines[3]["status"], lines[3]["error"]["type"]) == ("failed", "model_not_found")
        assert upstream.total == 39
        assert {record.microdao_id for record in replica.recorder.records} == {"microdao:7"}
        assert len({record.request_id for record in replica.recorder.records}) == 39


async def test_tenants_never_see_each_others_batches(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0}}
    ) as replica:
        batch = (await submit(replica.client, [request("a")]))["id"]
        for method, path in (
            ("GET", f"/batch/{batch}"),
            ("DELETE", f"/batch/{batch}"),
            ("GET", f"/batch/{batch}/items"),
        ):
            for params in (OTHER, {"microdao_id": "'; --"}):
                assert (
                    await replica.client.request(method, path, params=params)
                ).status_code == 404
            assert (await replica.client.request(method, path)).status_code == 400
            both = await replica.client.request(
                method, path, params=OTHER, headers={"X-Microdao-Id": "microdao:7"}
            )
            assert both.status_code == 400
        assert (await replica.client.get("/batch", params=OTHER)).json() == {"batches": []}
        for unknown in ("batch-0", "nope", "batch-00000000-0000-0000-0000-000000000000"):
            assert (await replica.client.get(f"/batch/{unknown}", params=OWN)).status_code == 404
        assert (
            await replica.client.get(f"/batch/{batch}", headers={"X-Microdao-Id": "microdao:7"})
        ).status_code == 200
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute("SET ROLE daarion_service")
            for table in ("llm_batches", "llm_batch_items", "llm_batch_turns"):
                assert (
                    await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()
                )[0] == 0


async def test_the_list_is_paged_newest_first(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0}}
    ) as replica:
        made = [(await submit(replica.client, [request("a")]))["id"] for _ in range(7)]
        seen, cursor = [], None
        while True:
            params = {**OWN, "limit": 3, **({"cursor": cursor} if cursor else {})}
            page = (await replica.client.get("/batch", params=params)).json()
            seen += [batch["id"] for batch in page["batches"]]
            cursor = page.get("next_cursor")
            if cursor is None:
                break
            assert (
                await replica.client.get("/batch", params={**OTHER, "cursor": cursor})
            ).status_code == 400
        assert seen == made[::-1]


NO_BATCHES = [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"[]", 400, "requests"),
    (b'{"requests": {}}', 400, "requests"),
    (b'{"requests": []}', 400, "from 1 to 10000"),
    ({"requests": [request("a")], "priority": 1}, 400, "priority"),
    ({"requests": [request("a"), request("b", temperature=9)]}, 400, "requests[1].temperature"),
    ({"requests": [request("a"), {"custom_id": "b"}]}, 400, "requests[1].model"),
    ({"requests": [request("a"), 7]}, 400, "requests[1]"),
    ({"requests": [request("a"), request("b"), request("a")]}, 400, "requests[2].custom_id"),
    ({"requests": [request("")]}, 400, "requests[0].custom_id"),
    (
        {
            "requests": [
                request("a"),
                request("b", metadata={**CALLER, "microdao_id": "microdao:8"}),
            ]
        },
        400,
        "one microDAO",
    ),
    ({"requests": [request("a", cache={"ttl_s": 5})]}, 400, "temperature"),
    ({"requests": [request("a", colour="red")]}, 400, "requests[0].colour"),
    ({"requests": [{"custom_id": str(number)} for number in range(10_001)]}, 400, "10001"),
    (b" " * 50_000_001, 413, "47 MiB"),
]


async def test_what_is_no_batch_is_refused_whole(database_url, upstream):
    async with llm_replica(database_url, upstream.base_url) as replica:
        for body, status, told in NO_BATCHES:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            response = await replica.client.post("/batch", content=content)
            assert (response.status_code, response.json()["error"]["retryable"]) == (status, False)
            assert told in response.json()["error"]["message"]
        assert (await replica.client.get("/batch", params=OWN)).json() == {"batches": []}


async def test_a_microdaos_waiting_requests_are_bounded(database_url, upstream):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0, "max_waiting": 3}}
    ) as replica:
        first = await submit(replica.client, [request("a"), request("b")])
        refused = await replica.client.post(
            "/batch", json={"requests": [request("c"), request("d")]}
        )
        assert refused.status_code == 429
        assert refused.headers["Retry-After"]
        assert refused.json()["error"]["details"]["left"] == 1
        never = await replica.client.post(
            "/batch", json={"requests": [request(str(number)) for number in range(4)]}
        )
        assert (never.status_code, never.json()["error"]["type"]) == (429, "over_limit")
        assert "Retry-After" not in never.headers
        await replica.client.delete(f"/batch/{first['id']}", params=OWN)
        await submit(replica.client, [request("c"), request("d")])


async def test_the_largest_batch_is_taken_and_the_event_loop_goes_on_meanwhile(
    database_url, upstream
):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0}}
    ) as replica:
        content = json.dumps(
            {"requests": [request(str(number), "ї" * 300) for number in range(10_000)]}
        ).encode()
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0.005)
                beats += 1

        beating = asyncio.create_task(beat())
        response = await replica.client.post("/batch", content=content)
        beating.cancel()
        assert response.status_code == 202, response.text
        assert response.json()["counts"]["pending"] == 10_000
        assert beats > 20
        lines = await items_of(replica.client, response.json()["id"])
        assert [line["custom_id"] for line in lines] == [str(number) for number in range(10_000)]
        assert {line["status"] for line in lines} == {"pending"}


async def test_cancelling_keeps_results_stops_what_runs_and_begins_nothing_more(
    database_url, upstream
):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 2}}, **CALM
    ) as replica:
        upstream.script(*["ok"] * 3, "silence")
        batch = (
            await submit(
                replica.client, [request(str(number), model="calm") for number in range(20)]
            )
        )["id"]
        await upstream.wait_for(requests=5, timeout_s=PATIENCE_S)
        assert (await replica.client.delete(f"/batch/{batch}", params=OWN)).json()[
            "status"
        ] == "cancelling"
        await upstream.wait_for(cancelled=2, timeout_s=PATIENCE_S)
        done = await wait_for(replica.client, batch, status="cancelled")
        assert done["counts"] == {
            "total": 20,
            "pending": 0,
            "running": 0,
            "succeeded": 3,
            "failed": 0,
            "cancelled": 17,
        }
        statuses = collections.Counter(
            line["status"] for line in await items_of(replica.client, batch)
        )
        assert statuses == {"succeeded": 3, "cancelled": 17}
        assert (await replica.client.delete(f"/batch/{batch}", params=OWN)).json()[
            "status"
        ] == "cancelled"
        assert upstream.total == 5


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


async def test_passing_failures_are_tried_again_and_given_up_in_the_end(database_url, upstream):
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


async def test_calls_that_somebody_waits_for_take_all_slots_but_one(database_url, upstream):
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


async def test_batches_outlive_a_restart_and_their_retention_ends(
    database_url, database_owner_url, upstream
):
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 0}}
    ) as replica:
        batch = (await submit(replica.client, [request("a")]))["id"]
    async with llm_replica(database_url, upstream.base_url) as replica:
        await wait_for(replica.client, batch)
        assert (await items_of(replica.client, batch))[0]["response"]["content"] == "Echo: hi"
    async with await psycopg.AsyncConnection.connect(
        database_owner_url, autocommit=True
    ) as connection:
        await connection.execute("UPDATE llm_batches SET created_at = now() - interval '31 days'")
    async with llm_replica(database_url, upstream.base_url) as replica:
        async with asyncio.timeout(PATIENCE_S):
            while (await replica.client.get(f"/batch/{batch}", params=OWN)).status_code != 404:
                await asyncio.sleep(0.05)


class Process:
    """One replica, started again on its port after each kill."""

    def __init__(self, database_url, upstream_url):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._argv = [
            sys.executable,
            "-m",
            "tests.support.llm.process",
            database_url,
            upstream_url,
            str(self.port),
        ]
        self.process = None

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(*self._argv, cwd=REPOSITORY)
        async with httpx.AsyncClient() as http, asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{self.url}/health")).status_code == 200:
                        return
                assert self.process.returncode is None
                await asyncio.sleep(0.1)

    async def kill(self):
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()


async def test_workers_are_killed_and_every_request_still_has_exactly_one_result(
    database_url, upstream
):
    upstream.script(play("slow", wait_s=0.3))
    processes = [Process(database_url, upstream.base_url) for _ in range(2)]
    try:
        await asyncio.gather(*(process.start() for process in processes))
        async with httpx.AsyncClient(base_url=processes[0].url, timeout=PATIENCE_S) as client:
            requests = [request(str(number), f"q{number}", model="calm") for number in range(40)]
            batch = (await submit(client, requests))["id"]
            await upstream.wait_for(requests=10, timeout_s=PATIENCE_S)
            await processes[1].kill()
            done = await wait_for(client, batch)
            assert (done["counts"]["succeeded"], done["counts"]["failed"]) == (40, 0)
            lines = await items_of(client, batch)
        assert [line["response"]["content"] for line in lines] == [
            f"Echo: q{number}" for number in range(40)
        ]
        asked = collections.Counter(
            call.body["messages"][0]["content"] for call in upstream.requests
        )
        assert set(asked) == {f"q{number}" for number in range(40)}
        assert 40 <= upstream.total <= 40 + 4  # only what a killed worker had begun is asked again
    finally:
        for process in processes:
            await process.kill()


async def test_a_result_that_cannot_be_written_at_once_is_written_later(database_url, upstream):
    slow = WorkerSettings(poll_s=0.1, lease_s=60.0, tend_s=0.3, backoff_s=0.1)
    async with llm_replica(database_url, upstream.base_url, worker=slow, **CALM) as replica:
        upstream.script(play("slow", wait_s=0.5))
        batch = (
            await submit(
                replica.client, [request(str(number), model="calm") for number in range(4)]
            )
        )["id"]
        await upstream.wait_for(requests=4, timeout_s=PATIENCE_S)
        queue = replica.runtime._worker._queue
        finish, away = queue.finish, 3

        async def failing(*arguments, **keywords):
            nonlocal away
            if away:
                away -= 1
                raise DatabaseUnavailable("away")
            return await finish(*arguments, **keywords)

        queue.finish = failing
        await wait_for(replica.client, batch)
        assert upstream.total == 4


async def test_an_attempt_whose_claim_or_end_was_lost_on_the_way_is_taken_up_again(
    database_url, upstream
):
    flaky = {"flaky": {"provider": "backup", "name": "flaky-upstream"}}
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 3}}, **CALM, **flaky
    ) as replica:
        queue = replica.runtime._worker._queue
        claim, put_back, lost = queue.claim, queue.put_back, set()

        async def claim_whose_answer_is_lost(lease_s):
            work = await claim(lease_s)
            if work is not None and work.position == 1 and "claim" not in lost:
                lost.add("claim")
                raise DatabaseUnavailable("the connection broke during the commit")
            return work

        async def put_back_that_is_lost(*arguments, **keywords):
            if "put_back" not in lost:
                lost.add("put_back")
                raise DatabaseUnavailable("away")
            await put_back(*arguments, **keywords)

        queue.claim, queue.put_back = claim_whose_answer_is_lost, put_back_that_is_lost
        upstream.script("silence", model="m")
        upstream.script(play("truncated_json", times=4), model="flaky-upstream")
        requests = [
            request("held", model="calm"),
            *(request(str(number), model="flaky") for number in range(1, 4)),
        ]
        batch = (await submit(replica.client, requests))["id"]
        async with asyncio.timeout(PATIENCE_S):
            while (
                True
            ):  # the leases of this process go on all the time: one of its requests has no answer
                counts = (await replica.client.get(f"/batch/{batch}", params=OWN)).json()["counts"]
                if counts["succeeded"] == 3:
                    break
                await asyncio.sleep(0.05)
        assert (counts["running"], lost) == (1, {"claim", "put_back"})


async def test_a_model_that_is_left_alone_holds_up_no_other_and_ends_with_what_it_failed_with(
    database_url, upstream
):
    sections = {"batch": {"concurrency": 1, "max_failures": 50}}
    models = {"dead": {"provider": "backup", "name": "dead-upstream"}}
    worker = WorkerSettings(
        poll_s=0.1, lease_s=30.0, tend_s=0.3, backoff_s=0.1, backoff_max_s=0.4, stall_limit_s=1.5
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
        claimed = [(await queue.claim(60.0)) for _ in range(10)]
        assert collections.Counter(work.microdao_id for work in claimed) == {
            "microdao:7": 5,
            "microdao:8": 5,
        }
        assert len({work.batch_id for work in claimed if work.microdao_id == "microdao:7"}) == 5
        rest = [(await queue.claim(60.0)) for _ in range(16)]
        assert (sum(work is not None for work in rest), rest[-1]) == (15, None)


async def test_submissions_at_once_do_not_pass_the_bound_together(database_url, upstream):
    sections = {"batch": {"concurrency": 0, "max_waiting": 30}}
    async with (
        llm_replica(database_url, upstream.base_url, sections=sections) as one,
        llm_replica(database_url, upstream.base_url, sections=sections) as another,
    ):
        body = {"requests": [request(str(number)) for number in range(10)]}
        clients = [one.client, another.client] * 4
        answers = await asyncio.gather(*(client.post("/batch", json=body) for client in clients))
        assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * 5


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
        assert (await turns(), await queue.claim(1.0)) == (0, None)
        await submit(replica.client, [request("a")])
        assert (await turns(), (await queue.claim(1.0)).microdao_id) == (1, "microdao:7")
