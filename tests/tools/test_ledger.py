"""The ledger over a real PostgreSQL: one call per id, whatever happens to caller or database."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg
import pytest

from backends.postgres.pool import Database
from backends.tools.ledger import LedgerLimits, PostgresToolLedger
from contracts.errors import DaarionError, DatabaseUnavailable
from contracts.tools.api import Decision, Outcome
from contracts.tools.ledger import CallFilter, Settlement
from tests.support.events import RecordedEvents
from tests.support.tools.ledger import OURS, intent, slow_replica, until
from tests.support.tools.toolcore import replica, tool


async def test_a_concurrent_duplicate_waits_for_the_first_on_another_replica(database_url):
    async with (
        slow_replica(database_url, 0.5, effect="write") as one,
        slow_replica(database_url, 0.5, effect="write") as two,
    ):
        first = asyncio.create_task(one.call(call_id="same"))
        await until(lambda: one.executor.seen)
        second = await two.call(call_id="same")
        assert second.result.replayed is True
        assert second.result.result == (await first).result.result == {"n": 1}
        assert len(one.executor.seen) + len(two.executor.seen) == 1


async def test_a_duplicate_waits_no_longer_than_its_own_deadline(database_url):
    release = asyncio.Event()

    async def work(_):
        await release.wait()
        return {}

    async with replica(database_url, tool(effect="write"), script=work) as one:
        first = asyncio.create_task(one.call(call_id="same"))
        await until(lambda: one.executor.seen)
        second = await one.call(call_id="same", timeout_s=0.5)
        assert (second.executed, second.result.error_kind, second.result.retryable) == (
            False,
            "conflict",
            True,
        )
        release.set()
        assert (await first).result.ok


async def test_thirty_duplicates_at_once_run_once(database_url):
    async with slow_replica(database_url, 0.2, effect="write") as here:
        replies = await asyncio.gather(*(here.call(call_id="same") for _ in range(30)))
        assert len(here.executor.seen) == 1
        assert all(reply.result.ok for reply in replies)


async def test_a_passing_failure_does_not_settle_a_call_id(database_url):
    answers = [
        Outcome(ok=False, error_kind="unavailable", error="away", retryable=True),
        Outcome(ok=True, result={"n": 2}),
    ]
    for effect in ("read", "idempotent", "write"):
        script = iter(answers)
        async with replica(
            database_url,
            tool(f"test.{effect}", effect=effect),
            script=lambda _, given=script: next(given),
        ) as here:
            first = await here.call(f"test.{effect}", call_id=f"retry-{effect}")
            assert (first.result.ok, first.result.retryable) == (False, True)
            second = await here.call(f"test.{effect}", call_id=f"retry-{effect}")
            third = await here.call(f"test.{effect}", call_id=f"retry-{effect}")
            assert (second.result.ok, third.result.replayed) == (True, True)
            page = await here.toolcore.audit.calls(
                CallFilter(microdao_id="microdao:7", call_id=f"retry-{effect}")
            )
            assert [(call.ok, call.attempt) for call in page.calls] == [(True, 2)]


async def test_a_write_that_may_have_happened_is_not_repeated(database_url):
    failure = Outcome(
        ok=False, error_kind="timeout", error="late", retryable=True, effect_possible=True
    )
    async with replica(database_url, tool(effect="write"), script=lambda _: failure) as here:
        for _ in range(2):
            reply = await here.call(call_id="late")
            assert (reply.result.error_kind, reply.result.retryable) == ("timeout", False)
            assert reply.result.details == {"effect": "possible"}
        assert len(here.executor.seen) == 1


@pytest.mark.parametrize("effect", ["read", "write"])
async def test_a_caller_that_leaves_is_recorded(database_url, effect):
    async with slow_replica(database_url, 30, effect=effect) as here:
        task = asyncio.create_task(here.call(call_id="left"))
        async with asyncio.timeout(60):
            while not here.executor.seen:
                await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            while (
                not (page := await here.toolcore.audit.calls(OURS)).calls
                or page.calls[0].state == "running"
            ):
                await asyncio.sleep(0.02)
        assert (page.calls[0].state, page.calls[0].error_kind) == ("settled", "cancelled")
        assert here.usage.published[0].error_kind == "cancelled"


async def test_a_call_whose_caller_leaves_while_it_is_claimed_is_settled(database_url):
    async with replica(database_url, tool(effect="write")) as here:
        real, claimed = here.ledger.claim, asyncio.Event()

        async def slow_claim(given):
            holder = await real(given)
            claimed.set()
            await asyncio.sleep(0.2)
            return holder

        here.ledger.claim = slow_claim
        task = asyncio.create_task(here.call(call_id="left"))
        await asyncio.wait_for(claimed.wait(), 60)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            while (await here.ledger.find("microdao:7", "left")).state != "settled":
                await asyncio.sleep(0.02)
        assert here.executor.seen == []
        here.ledger.claim = real
        again = await here.call(call_id="left")
        assert (again.result.ok, len(here.executor.seen)) == (True, 1)


async def test_an_executor_that_raises_or_overstays_is_a_typed_failure(database_url):
    def broken(_):
        raise RuntimeError("secret detail")

    async with replica(database_url, tool(effect="write"), script=broken) as here:
        reply = await here.call()
        assert (reply.executed, reply.result.error_kind) == (True, "internal")
        assert "secret detail" not in reply.result.error
    async with slow_replica(database_url, 30, timeout_s=0.2) as here:
        assert (await here.call()).result.error_kind == "timeout"


async def test_results_that_cannot_be_written_or_are_too_long(database_url):
    for result, kind in (
        (object(), "invalid_result"),
        ("\ud800", "invalid_result"),
        ({"n": 2**70}, "invalid_result"),
        ("x" * 2_000, "too_large"),
    ):
        async with replica(
            database_url,
            tool(max_result_bytes=1_000),
            script=lambda _, given=result: Outcome(ok=True, result=given),
        ) as here:
            reply = await here.call()
            assert (reply.result.ok, reply.result.error_kind) == (False, kind)


async def test_max_concurrency_bounds_and_refuses_in_time(database_url):
    running = most = 0

    async def work(_):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return {}

    async with replica(database_url, tool(max_concurrency=2), script=work) as here:
        replies = await asyncio.gather(*(here.call(timeout_s=3.5) for _ in range(10)))
    assert most == 2
    kinds = {reply.result.error_kind for reply in replies if not reply.result.ok}
    assert kinds <= {"unavailable", "timeout"}
    assert any(reply.result.ok for reply in replies)
    assert not all(reply.result.ok for reply in replies)


async def test_tools_that_opt_in_show_contents_in_the_audit(database_url):
    async with replica(
        database_url,
        tool(record_args=True, record_result=True, effect="write"),
        script=lambda _: {"so": "видно"},
    ) as here:
        await here.call(args={"a": "видно"}, call_id="open")
        call = (await here.toolcore.audit.calls(OURS)).calls[0]
    assert (call.args, call.result) == ({"a": "видно"}, {"so": "видно"})


async def test_row_security_keeps_microdaos_apart(database):
    ledger = PostgresToolLedger(database)
    mine = intent("c")
    await ledger.claim(mine)
    await ledger.settle("microdao:7", mine.id, 1, Settlement(ok=True, body='"secret"'))
    assert await ledger.read_result("microdao:7", mine.id) is not None
    assert await ledger.read_result("microdao:8", mine.id) is None
    async with database.transaction(microdao_id="microdao:8") as connection:
        for table in ("tool_calls", "tool_results"):
            assert await (
                await connection.execute(f"SELECT count(*) AS n FROM {table}")
            ).fetchone() == {"n": 0}
    async with database.transaction() as connection:
        assert await (
            await connection.execute("SELECT count(*) AS n FROM tool_calls")
        ).fetchone() == {"n": 0}
    with pytest.raises(DaarionError):
        async with database.transaction(microdao_id="microdao:8") as connection:
            await connection.execute(
                "INSERT INTO tool_results VALUES (%s, 'microdao:7', '1', NULL, now())", [mine.id]
            )


async def test_old_results_and_calls_are_purged(database, database_owner_url):
    ledger = PostgresToolLedger(database, LedgerLimits(keep_results_s=0.1, keep_calls_days=1))
    kept, old = intent("kept"), intent("old")
    for each in (kept, old):
        await ledger.claim(each)
        await ledger.settle("microdao:7", each.id, 1, Settlement(ok=True, body='"r"'))
    async with await psycopg.AsyncConnection.connect(database_owner_url, autocommit=True) as owner:
        await owner.execute(
            "UPDATE tool_calls SET started_at = now() - interval '2 days' WHERE call_id = 'old'"
        )
    await asyncio.sleep(0.2)
    assert await ledger.purge() > 0
    assert await ledger.find("microdao:7", "old") is None
    remains = await ledger.find("microdao:7", "kept")
    assert remains.settlement.body is None


async def test_a_forgotten_result_is_a_conflict_not_a_second_run(database_url):
    async with replica(
        database_url, tool(effect="write"), limits=LedgerLimits(keep_results_s=0.05)
    ) as here:
        await here.call(call_id="once")
        await asyncio.sleep(0.1)
        await here.ledger.purge()
        again = await here.call(call_id="once")
        assert (again.executed, again.result.error_kind) == (False, "conflict")
        assert len(here.executor.seen) == 1


async def test_without_the_database_nothing_runs(database_urls):
    events = RecordedEvents()
    broken = Database("postgresql://nobody:x@127.0.0.1:1/none", events=events)
    await broken.open()
    async with replica(database_urls.service, tool(effect="write")) as here:
        here.ledger._database = broken
        reply = await here.call(call_id="c")
        assert (reply.executed, reply.result.error_kind, reply.result.retryable) == (
            False,
            "unavailable",
            True,
        )
        assert here.executor.seen == []
    await broken.close()


async def test_an_end_that_could_not_be_written_is_written_later(database_url, monkeypatch):
    monkeypatch.setattr("services.tools.recorder.LATE_RETRY_S", 0.1)
    async with replica(database_url, tool(effect="write")) as here:
        real, refused = here.ledger.settle, []

        async def failing(*given):
            if len(refused) < 6:
                refused.append(given)
                raise DatabaseUnavailable("away")
            return await real(*given)

        here.ledger.settle = failing
        reply = await here.call(call_id="late")
        assert reply.result.ok
        async with asyncio.timeout(60):
            while (await here.ledger.find("microdao:7", "late")).state != "settled":
                await asyncio.sleep(0.05)
        assert here.events.named("tools.end_delayed")


async def test_refusals_do_not_take_the_call_id(database):
    ledger = PostgresToolLedger(database)
    await ledger.refuse(
        intent("c"), Decision(allowed=False, rule="x", error_kind="denied", reason="no")
    )
    assert await ledger.find("microdao:7", "c") is None
    assert await ledger.claim(intent("c")) is None
