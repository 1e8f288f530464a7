"""Leases over a real PostgreSQL: a call whose owner is gone ends or is taken over, once."""

from __future__ import annotations

import asyncio

import pytest

from backends.tools.ledger import PostgresToolLedger
from contracts.tools.ledger import Settlement
from tests.support.tools.ledger import LONG, claim_as, intent, run_out
from tests.support.tools.toolcore import replica, tool


async def test_a_write_whose_owner_is_gone_ends_indeterminate_and_never_runs_again(
    database_url, database, database_owner_url
):
    gone = PostgresToolLedger(database, LONG)
    async with replica(database_url, tool(effect="write")) as here:
        request = await here.call(call_id="probe")
        assert request.result.ok
        await claim_as(gone, here, "cut-off")
        await run_out(database_owner_url)
        for _ in range(2):
            reply = await here.call(call_id="cut-off")
            assert (reply.executed, reply.result.error_kind, reply.result.retryable) == (
                True,
                "indeterminate",
                False,
            )
        assert len(here.executor.seen) == 1


@pytest.mark.parametrize("effect", ["idempotent"])
async def test_others_run_again_with_the_same_key(
    database_url, database, database_owner_url, effect
):
    gone = PostgresToolLedger(database, LONG)
    async with replica(database_url, tool(effect=effect)) as here:
        await claim_as(gone, here, "cut-off", effect=effect)
        await run_out(database_owner_url)
        reply = await here.call(call_id="cut-off")
        assert reply.result.ok
        assert here.executor.seen[0].attempt == 2


async def test_abandoned_calls_are_settled_without_being_repeated(database, database_owner_url):
    ledger = PostgresToolLedger(database, LONG)
    await ledger.claim(intent("w", "write"))
    await ledger.claim(intent("i", "idempotent"))
    await ledger.claim(intent("other", "write", microdao_id="microdao:8"))
    assert await ledger.settle_abandoned() == []
    await run_out(database_owner_url)
    ended = {call.call_id: call.error_kind for call in await ledger.settle_abandoned()}
    assert ended == {"w": "indeterminate", "i": "unavailable", "other": "indeterminate"}
    assert await ledger.settle_abandoned() == []


async def test_a_lease_that_is_prolonged_is_not_over(database, database_owner_url):
    ledger, other = PostgresToolLedger(database, LONG), PostgresToolLedger(database, LONG)
    claimed = intent("mine")
    await ledger.claim(claimed)
    await run_out(database_owner_url)
    await ledger.renew([claimed.id])
    assert await other.settle_abandoned() == []
    assert await ledger.settle("microdao:7", claimed.id, 1, Settlement(ok=True, body="1"))


async def test_an_owner_that_was_only_slow_cannot_overwrite(database, database_owner_url):
    slow, quick = PostgresToolLedger(database, LONG), PostgresToolLedger(database, LONG)
    claimed = intent("c", "idempotent")
    await slow.claim(claimed)
    await run_out(database_owner_url)
    assert await quick.take_over(await quick.find("microdao:7", "c"))
    assert await quick.settle("microdao:7", claimed.id, 2, Settlement(ok=True, body='"second"'))
    assert not await slow.settle("microdao:7", claimed.id, 1, Settlement(ok=True, body='"first"'))
    assert (await quick.find("microdao:7", "c")).settlement.body == '"second"'


async def test_two_take_over_one_wins(database, database_owner_url):
    ledgers = [PostgresToolLedger(database, LONG) for _ in range(5)]
    await ledgers[0].claim(intent("c", "idempotent"))
    await run_out(database_owner_url)
    found = await ledgers[0].find("microdao:7", "c")
    assert sorted(await asyncio.gather(*(ledger.take_over(found) for ledger in ledgers))) == [
        False
    ] * 4 + [True]


async def test_a_claimed_call_that_nobody_runs_is_not_prolonged_with_the_others(
    database, database_owner_url
):
    ledger = PostgresToolLedger(database, LONG)
    orphan, running = intent("orphan"), intent("running")
    for each in (orphan, running):
        await ledger.claim(each)
    await run_out(database_owner_url)
    await ledger.renew([running.id])
    assert [call.call_id for call in await ledger.settle_abandoned()] == ["orphan"]


async def test_a_defect_ends_no_background_work(database_url, monkeypatch):
    monkeypatch.setattr("services.tools.recorder.UPKEEP_INTERVAL_S", 0.05)
    async with replica(database_url, tool()) as here:
        real, failures = here.ledger.settle_abandoned, iter([ZeroDivisionError()] * 2)
        ended = asyncio.Event()

        async def failing():
            if (failure := next(failures, None)) is not None:
                raise failure
            ended.set()
            return await real()

        here.ledger.settle_abandoned = failing
        async with asyncio.timeout(60):
            await ended.wait()
        defects = here.events.named("tools.upkeep_defect")
        assert [event["error"] for event in defects] == ["ZeroDivisionError"] * 2
