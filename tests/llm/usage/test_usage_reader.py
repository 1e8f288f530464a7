"""Sums over a real ledger: groups, filters, ranges and pages."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backends.llm.usage_reader import MAX_WAITING, PostgresUsageReader
from backends.postgres.pool import Database
from contracts.errors import InvalidRequest, Overloaded
from contracts.llm.usage import UsageFilter, UsagePage, UsageRow
from tests.support.events import RecordedEvents
from tests.support.llm.ledger_writer import LedgerWriter
from tests.support.llm.usage import MOMENT, usage_record

START, END = MOMENT - timedelta(days=10), MOMENT + timedelta(days=10)


def asked(**changes: Any) -> UsageFilter:
    return UsageFilter(**({"start": START, "end": END} | changes))


@pytest.fixture
async def ledger(database: Database, tmp_path: Path, events: RecordedEvents) -> PostgresUsageReader:
    writer = LedgerWriter(database, tmp_path, events=events)
    await writer.start()
    for number in range(60):
        writer.record(
            usage_record(
                agent_id=f"agent:{number % 3}",
                microdao_id=f"microdao:{number % 2}",
                logical_model="gpt-4" if number % 5 else "агент-модель",
                occurred_at=MOMENT + timedelta(days=number % 4),
                outcome="ok" if number % 6 else "upstream_timeout",
                cost_usd=Decimal("0.01") if number % 2 else None,
            )
        )
    await writer.close(timeout_s=30)
    assert events.named("usage.left_in_journal") == []
    return PostgresUsageReader(database)


async def everything(ledger: PostgresUsageReader, usage_filter: UsageFilter) -> list[UsageRow]:
    rows: list[UsageRow] = []
    page = await ledger.query(usage_filter)
    rows += page.rows
    for _ in range(100):
        if page.next_cursor is None:
            return rows
        page = await ledger.query(
            usage_filter.model_copy(
                update={"cursor": page.next_cursor, "start": MOMENT, "end": MOMENT}
            )
        )
        rows += page.rows
    raise AssertionError("the pages have no end")


async def test_the_total(ledger: PostgresUsageReader) -> None:
    page = await ledger.query(asked())
    assert page == UsagePage(
        rows=[
            UsageRow(
                calls=60,
                errors=10,
                attempts=60,
                prompt_tokens=6000,
                completion_tokens=1200,
                total_tokens=7200,
                cached_tokens=600,
                reasoning_tokens=300,
                cost_usd=Decimal("0.3"),
                unpriced=30,
            )
        ],
        start=START,
        end=END,
    )


async def test_an_empty_range_is_one_row_of_zeros_or_no_group(ledger: PostgresUsageReader) -> None:
    long_ago = {"start": START - timedelta(days=9), "end": START}
    (row,) = (await ledger.query(asked(**long_ago))).rows
    assert (row.calls, row.total_tokens, row.cost_usd) == (0, 0, None)
    assert (await ledger.query(asked(group_by=("day",), **long_ago))).rows == []


async def test_the_start_belongs_to_the_range_and_the_end_does_not(
    ledger: PostgresUsageReader,
) -> None:
    page = await ledger.query(
        asked(start=MOMENT, end=MOMENT + timedelta(days=1), group_by=("day",))
    )
    assert [(row.day, row.calls) for row in page.rows] == [(date(2026, 3, 14), 15)]


async def test_groups_in_the_order_they_were_asked(ledger: PostgresUsageReader) -> None:
    rows = (await ledger.query(asked(group_by=("microdao", "agent")))).rows
    assert [(row.microdao_id, row.agent_id, row.calls) for row in rows] == [
        (f"microdao:{microdao}", f"agent:{agent}", 10)
        for microdao in range(2)
        for agent in range(3)
    ]
    assert {row.model for row in rows} == {None}
    assert [row.cost_usd for row in rows[:3]] == [None] * 3


@pytest.mark.parametrize(
    ("name", "value", "calls"),
    [
        ("agent_id", "agent:1", 20),
        ("microdao_id", "microdao:0", 30),
        ("model", "агент-модель", 12),
        ("provider", "openai", 60),
        ("provider", "deepseek", 0),
        ("agent_id", "' OR true --", 0),
    ],
)
async def test_filters(ledger: PostgresUsageReader, name: str, value: str, calls: int) -> None:
    (row,) = (await ledger.query(asked(**{name: value}))).rows
    assert row.calls == calls


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 24, 25])
@pytest.mark.parametrize(
    "group_by",
    [("agent", "day", "model"), ("day",), ("model", "provider", "day", "agent", "microdao")],
)
async def test_pages_hold_every_group_once(
    ledger: PostgresUsageReader, group_by: Any, limit: int
) -> None:
    whole = (await ledger.query(asked(group_by=group_by, limit=1000))).rows
    assert await everything(ledger, asked(group_by=group_by, limit=limit)) == whole
    assert sum(row.calls for row in whole) == 60


@pytest.mark.parametrize("cursor", ["x", "!!", "bnVsbA==", "W10=", "WzEsMiwzLDRd", "é", "A" * 4096])
async def test_a_malformed_cursor_is_refused(ledger: PostgresUsageReader, cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        await ledger.query(asked(group_by=("day",), cursor=cursor))


@pytest.mark.parametrize(
    "change",
    [
        {"agent_id": "agent:2"},
        {"group_by": ("model",)},
        {"group_by": ()},
        {"group_by": ("agent", "day")},
    ],
)
async def test_a_cursor_of_another_query(
    ledger: PostgresUsageReader, change: dict[str, Any]
) -> None:
    cursor = (await ledger.query(asked(group_by=("agent",), limit=1))).next_cursor
    assert cursor is not None
    with pytest.raises(InvalidRequest):
        await ledger.query(asked(**({"group_by": ("agent",), "cursor": cursor} | change)))


@pytest.mark.parametrize("text", ["\0", "\ud800"])
async def test_a_filter_that_postgresql_cannot_hold(ledger: PostgresUsageReader, text: str) -> None:
    with pytest.raises(InvalidRequest):
        await ledger.query(asked().model_copy(update={"agent_id": text}))


async def test_the_ends_of_the_calendar(ledger: PostgresUsageReader) -> None:
    page = await ledger.query(
        asked(start=datetime.min.replace(tzinfo=UTC), end=datetime.max.replace(tzinfo=UTC))
    )
    assert page.rows[0].calls == 60


async def test_the_billing_view_agrees_with_the_sums(
    ledger: PostgresUsageReader, database: Database
) -> None:
    async with database.transaction() as connection:
        found = await (
            await connection.execute(
                "SELECT sum(calls) AS calls, sum(errors) AS errors, "
                "sum(total_tokens) AS tokens, sum(cost_usd) AS cost, "
                "sum(attempts_without_price) AS unpriced, count(DISTINCT day) AS days "
                "FROM usage_llm_billing WHERE microdao_id = 'microdao:1'"
            )
        ).fetchone()
    assert found == {
        "calls": 30,
        "errors": 0,
        "tokens": 3600,
        "cost": Decimal("0.3"),
        "unpriced": 0,
        "days": 2,
    }


async def test_queries_leave_the_ledger_its_connections(
    database: Database, database_owner_url: str, tmp_path: Path
) -> None:
    store = PostgresUsageReader(database)
    async with await psycopg.AsyncConnection.connect(database_owner_url) as blocker:
        await blocker.execute(
            "LOCK TABLE llm_attempts IN ACCESS EXCLUSIVE MODE"
        )  # queries hang as if they were slow
        queries = [asyncio.create_task(store.query(asked())) for _ in range(2 + MAX_WAITING)]
        await asyncio.sleep(0)  # each has begun
        with pytest.raises(Overloaded):
            await store.query(asked())
        for _ in range(20):  # others find a connection at once
            async with database.transaction() as connection:
                await connection.execute("SELECT 1")
        assert not any(query.done() and query.exception() is None for query in queries)
        for query in queries:
            query.cancel()
        await asyncio.wait(queries)
        await blocker.rollback()
    assert (await store.query(asked())).rows


async def test_the_calls_of_a_trace(
    database: Database, tmp_path: Path, events: RecordedEvents
) -> None:
    writer = LedgerWriter(database, tmp_path, events=events)
    await writer.start()
    for trace_id in (None, "1" * 32, "1" * 32, "2" * 32):
        writer.record(usage_record(trace_id=trace_id, occurred_at=MOMENT))
    await writer.close(timeout_s=30)
    ledger = PostgresUsageReader(database)
    rows = await everything(ledger, asked(group_by=("trace",), limit=1))
    assert [(row.trace_id, row.calls) for row in rows] == [("", 1), ("1" * 32, 2), ("2" * 32, 1)]
    (row,) = (await ledger.query(asked(trace_id="1" * 32))).rows
    assert (row.calls, row.trace_id) == (2, None)
