"""Erased agents and channels: their requests in batches, and answers kept for their keys."""

from uuid import uuid4

import pytest

from backends.llm.batches import PostgresBatches, PostgresBatchQueue
from backends.llm.idempotency import PostgresIdempotency
from backends.postgres.erasing import TenantRows
from contracts.errors import NotFound
from contracts.llm.batches import NewItem
from contracts.llm.idempotency import Granted, KeyUse, Settled
from contracts.memory.administration import EraseRequest
from tests.support.llm.answers import llm_replica
from tests.support.llm.proxy import CALLER

OWN, SOFIA, BORYS = "microdao:7", "agent:sofia", "agent:borys"
KEY = {"Idempotency-Key": "k-1"}
BODY = {"model": "plain", "messages": [{"role": "user", "content": "hi"}], "metadata": CALLER}


async def erase(database, **selected):
    return await TenantRows(database).erase(EraseRequest(microdao_id=OWN, **selected))


def items(*owners):
    return [
        NewItem(f"{number}", b"{}", agent, channel)
        for number, (agent, channel) in enumerate(owners)
    ]


async def finish_one(queue):
    work = await queue.lease(60.0)
    return work, await queue.finish(work, b"{}", succeeded=True)


async def test_a_batch_shrinks_by_an_erased_agent_and_ends_with_its_last_request(database):
    batches, queue = PostgresBatches(database), PostgresBatchQueue(database)
    batch = await batches.create(
        OWN, items((SOFIA, None), (SOFIA, "c"), (BORYS, None)), 100, "anonymous"
    )
    assert [(await finish_one(queue))[1] for _ in range(2)] == [False, False]
    counts = (await batches.get(OWN, batch.id)).counts
    assert (counts.total, counts.succeeded) == (3, 2)
    assert (await erase(database, agent_id=SOFIA, channel_id="c"))["batch_requests"] == 1
    counts = (await batches.get(OWN, batch.id)).counts
    assert (counts.total, counts.succeeded) == (2, 1)
    assert (await erase(database, agent_id=BORYS))["batch_requests"] == 1
    assert (await batches.get(OWN, batch.id)).status == "completed"
    assert (await erase(database, agent_id=SOFIA))["batch_requests"] == 1
    with pytest.raises(NotFound):
        await batches.get(OWN, batch.id)


async def test_a_request_that_is_answered_while_it_is_erased_leaves_nothing(database):
    batches, queue = PostgresBatches(database), PostgresBatchQueue(database)
    batch = await batches.create(OWN, items((SOFIA, None), (BORYS, None)), 100, "anonymous")
    work = await queue.lease(60.0)
    assert work.position == 0
    assert (await erase(database, agent_id=SOFIA))["batch_requests"] == 1
    assert await queue.finish(work, b"{}", succeeded=True) is None
    counts = (await batches.get(OWN, batch.id)).counts
    assert (counts.total, counts.succeeded, counts.pending) == (1, 0, 1)


async def test_an_erased_answer_is_not_replayed(database, database_url, upstream):
    async with llm_replica(database_url, upstream.base_url) as replica:
        await replica.client.post("/proxy", json=BODY, headers=KEY)
        assert (await erase(database, agent_id=BORYS))["idempotent_answers"] == 0
        assert (await erase(database, agent_id=SOFIA))["idempotent_answers"] == 1
        again = await replica.client.post("/proxy", json=BODY, headers=KEY)
        assert "Idempotent-Replayed" not in again.headers
        assert upstream.total == 2


async def test_a_key_in_work_stays_so_that_its_call_is_not_made_twice(database):
    store, use = PostgresIdempotency(database), KeyUse(OWN, b"k", b"f", SOFIA)
    granted = await store.begin(use, 60.0, 60.0)
    assert isinstance(granted, Granted)
    assert (await erase(database))["idempotent_answers"] == 0
    assert await store.settle(use, granted.lease, b"{}", 60.0)
    assert (await erase(database))["idempotent_answers"] == 1
    assert not isinstance(await store.begin(use, 60.0, 60.0), Settled)


async def test_rows_of_an_older_version_go_with_any_agent_of_their_microdao(
    database, database_urls
):
    await PostgresBatches(database).create(OWN, items((SOFIA, None)), 100, "anonymous")
    async with database.transaction(microdao_id=OWN) as connection:
        await connection.execute("UPDATE llm_batch_items SET agent_id = NULL")
        await connection.execute(
            "INSERT INTO llm_idempotency"
            " (microdao_id, key, fingerprint, leased_by, leased_until, answer, expires_at)"
            " VALUES (%s, '', '', %s, now(), '', now() + interval '1 day')",
            [OWN, uuid4()],
        )
    erased = await erase(database, agent_id=BORYS)
    assert (erased["batch_requests"], erased["idempotent_answers"]) == (1, 1)
