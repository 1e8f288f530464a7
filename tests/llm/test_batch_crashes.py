"""Batches whose replicas, database or messages fail: each request still has exactly one result."""

import asyncio
import collections

import httpx
import psycopg

from contracts.errors import DatabaseUnavailable
from services.llm.batches import WorkerSettings
from tests.support.llm.answers import llm_replica
from tests.support.llm.batches import (
    CALM,
    OWN,
    PATIENCE_S,
    items_of,
    request,
    submit,
    wait_for,
)
from tests.support.llm.replica_process import ReplicaProcess
from tests.support.llm.upstream import play


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


async def test_workers_are_killed_and_every_request_still_has_exactly_one_result(
    database_url, upstream
):
    upstream.script(play("slow", wait_s=0.3))
    processes = [ReplicaProcess(database_url, upstream.base_url) for _ in range(2)]
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
    slow = WorkerSettings(poll_every_s=0.1, lease_s=60.0, renew_every_s=0.3, backoff_s=0.1)
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


async def test_an_attempt_whose_claim_or_result_was_lost_is_repeated(database_url, upstream):
    flaky = {"flaky": {"provider": "backup", "name": "flaky-upstream"}}
    async with llm_replica(
        database_url, upstream.base_url, sections={"batch": {"concurrency": 3}}, **CALM, **flaky
    ) as replica:
        queue = replica.runtime._worker._queue
        lease, release, lost = queue.lease, queue.release, set()

        async def lease_whose_answer_is_lost(lease_s):
            work = await lease(lease_s)
            if work is not None and work.position == 1 and "lease" not in lost:
                lost.add("lease")
                raise DatabaseUnavailable("the connection broke during the commit")
            return work

        async def release_that_is_lost(*arguments):
            if "release" not in lost:
                lost.add("release")
                raise DatabaseUnavailable("away")
            await release(*arguments)

        queue.lease, queue.release = lease_whose_answer_is_lost, release_that_is_lost
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
        assert (counts["running"], lost) == (1, {"lease", "release"})
