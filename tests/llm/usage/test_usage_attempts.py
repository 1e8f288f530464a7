"""The ledger's attempts: each once, accounted to its model.

They are summed by agent, provider and day, with and without a price.
"""

import asyncio
import dataclasses
import shutil
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from backends.llm.usage_reader import SPENT, PostgresUsageReader, UsageSpending
from backends.postgres.migrate import MIGRATIONS, migrate
from backends.postgres.pool import Database
from contracts.llm.limits import SubjectKind
from contracts.llm.usage import AttemptRecord, UsageFilter, UsageRecord
from launcher.postgres import PostgresServer
from tests.support.events import RecordedEvents
from tests.support.llm.ledger_writer import LedgerWriter, leave_records
from tests.support.llm.usage import MOMENT, usage_record

START, END = MOMENT - timedelta(days=2), MOMENT + timedelta(days=2)


def tried(provider: str, outcome: str, tokens: int, cost: str | None) -> AttemptRecord:
    return AttemptRecord(
        provider=provider,
        physical_model=f"{provider}-model",
        outcome=outcome,
        latency_ms=1.5,
        prompt_tokens=tokens,
        completion_tokens=1,
        total_tokens=tokens + 1,
        cost_usd=None if cost is None else Decimal(cost),
    )


def failed_over(**changes: Any) -> UsageRecord:
    """A call whose first attempt broke half-way and whose second one answered."""
    tries = (
        tried("openai", "upstream_unavailable", 100, "0.5"),
        tried("backup", "ok", 200, "0.25"),
    )
    return usage_record(
        **{
            "provider": "backup",
            "tries": tries,
            "attempts": 2,
            "cost_usd": Decimal("0.75"),
            **changes,
        }
    )


async def written(
    database: Database, folder: Any, *records: UsageRecord, name: str = "here"
) -> None:
    writer = LedgerWriter(database, folder, events=RecordedEvents(), name=name)
    await writer.start()
    for record in records:
        writer.record(record)
    await writer.close(timeout_s=30)


async def attempts(database: Database) -> list[dict[str, Any]]:
    async with database.transaction() as connection:
        return await (
            await connection.execute("SELECT * FROM llm_attempts ORDER BY call_id, number")
        ).fetchall()


async def test_each_attempt_is_a_row_of_its_own_and_the_last_one_ends_the_call(
    database: Database, tmp_path: Any
) -> None:
    record = failed_over(credential="key-1", streamed=True)
    await written(database, tmp_path, record)
    first, second = await attempts(database)
    assert (first["provider"], first["outcome"], first["last"], first["cost_usd"]) == (
        "openai",
        "upstream_unavailable",
        False,
        Decimal("0.5"),
    )
    assert (second["provider"], second["outcome"], second["last"], second["total_tokens"]) == (
        "backup",
        "ok",
        True,
        201,
    )
    shared = {
        "call_id": record.id,
        "request_id": "req-1",
        "agent_id": "agent:sofia",
        "credential": "key-1",
        "recorder": "here",
    }
    assert all(
        {key: row[key] for key in shared} == shared and row["streamed"] for row in (first, second)
    )


async def test_a_record_delivered_twice_has_its_attempts_once(
    database: Database, tmp_path: Any
) -> None:
    record = failed_over()
    await written(database, tmp_path, record, record)
    await written(database, tmp_path, record)
    assert len(await attempts(database)) == 2


async def test_a_record_without_attempts_is_its_own_only_one(
    database: Database, tmp_path: Any
) -> None:
    """Embeddings write such ones, and so did earlier versions, whose files are still read."""
    await written(database, tmp_path, usage_record())
    old = {
        key: value
        for key, value in dataclasses.asdict(usage_record()).items()
        if key not in {"tries", "credential"}
    }
    leave_records(tmp_path, [orjson.dumps(old, default=str)])
    writer = LedgerWriter(database, tmp_path, events=RecordedEvents())
    await writer.start()
    async with asyncio.timeout(30):
        while writer.statistics().written < 1:
            await asyncio.sleep(0.02)
    await writer.close(timeout_s=30)
    rows = await attempts(database)
    assert [
        (row["number"], row["last"], row["total_tokens"], row["credential"]) for row in rows
    ] == [(1, True, 120, "anonymous")] * 2
    assert [row["recorder"] for row in rows] == ["here", ""]


async def test_usage_by_provider_gives_each_its_own_attempts(
    database: Database, tmp_path: Any
) -> None:
    await written(
        database,
        tmp_path,
        failed_over(),
        failed_over(),
        usage_record(outcome="cancelled", cost_usd=None),
    )
    rows = (
        await PostgresUsageReader(database).query(
            UsageFilter(start=START, end=END, group_by=("provider",))
        )
    ).rows
    sums = [
        (
            row.provider,
            row.calls,
            row.errors,
            row.attempts,
            row.total_tokens,
            row.cost_usd,
            row.unpriced,
        )
        for row in rows
    ]
    assert sums == [
        ("backup", 2, 0, 2, 402, Decimal("0.5"), 0),
        ("openai", 1, 1, 3, 322, Decimal(1), 1),
    ]
    (total,) = (await PostgresUsageReader(database).query(UsageFilter(start=START, end=END))).rows
    assert (total.calls, total.attempts, total.cost_usd, total.unpriced) == (
        3,
        5,
        Decimal("1.5"),
        1,
    )


async def test_the_billing_view_has_a_row_for_each_day_subject_and_model(
    database: Database, tmp_path: Any
) -> None:
    await written(
        database,
        tmp_path,
        failed_over(),
        failed_over(occurred_at=MOMENT + timedelta(days=1)),
        failed_over(credential="key-1"),
    )
    async with database.transaction() as connection:
        rows = await (
            await connection.execute(
                "SELECT * FROM usage_llm_billing ORDER BY day, credential, provider"
            )
        ).fetchall()
    assert [
        (row["day"].day, row["credential"], row["provider"], row["calls"], row["attempts"])
        for row in rows
    ] == [
        (day, credential, provider, calls, 1)
        for day, credential in ((14, "anonymous"), (14, "key-1"), (15, "anonymous"))
        for provider, calls in (("backup", 1), ("openai", 0))
    ]
    assert {(row["provider"], row["cost_usd"]) for row in rows} == {
        ("backup", Decimal("0.25")),
        ("openai", Decimal("0.5")),
    }


@pytest.mark.parametrize(
    ("kind", "subject"),
    [("agent", "agent:sofia"), ("microdao", "microdao:7"), ("credential", "key-1")],
)
async def test_spending_is_read_by_recorder(
    database: Database, tmp_path: Any, kind: Any, subject: str
) -> None:
    await written(
        database,
        tmp_path,
        failed_over(credential="key-1"),
        failed_over(credential="key-1"),
        name="one",
    )
    await written(database, tmp_path, failed_over(credential="key-1"), name="other")
    stranger = {"agent_id": "agent:x", "microdao_id": "microdao:x", "credential": "x"}
    await written(
        database,
        tmp_path,
        failed_over(**stranger),
        failed_over(credential="key-1", occurred_at=START),
        name="other",
    )
    spent = await UsageSpending(database).spent(kind, subject, MOMENT, END)
    assert spent == {"one": 1_500_000_000, "other": 750_000_000}
    assert await UsageSpending(database).spent(kind, subject, START, END) == {
        "one": 1_500_000_000,
        "other": 1_500_000_000,
    }
    assert await UsageSpending(database).spent(kind, subject, START, MOMENT) == {
        "other": 750_000_000
    }


async def test_a_record_written_twice_is_spent_once(database: Database, tmp_path: Any) -> None:
    record = failed_over()
    for name in ("one", "other"):  # as after a crash between the row and the end of its journal
        await written(database, tmp_path, record, failed_over(), name=name)
    assert await UsageSpending(database).spent("agent", "agent:sofia", MOMENT, END) == {
        "one": 1_500_000_000,
        "other": 750_000_000,
    }
    async with database.transaction() as connection:
        sums = await (
            await connection.execute("SELECT sum(cost_usd) AS all FROM llm_attempts")
        ).fetchone()
    assert sums == {"all": Decimal("2.25")}


async def test_money_of_a_large_ledger_is_read_from_few_pages(
    database: Database, database_owner_url: str
) -> None:
    async with await psycopg.AsyncConnection.connect(
        database_owner_url, autocommit=True
    ) as connection:
        await connection.execute(
            "INSERT INTO llm_spending SELECT kind, 'subject:' || subject, "
            "date '2026-03-01' + day, 'recorder:' || recorder, 0.01 "
            "FROM unnest(ARRAY['agent', 'microdao', 'credential']) AS kind, "
            "generate_series(1, 230) AS subject, "
            "generate_series(0, 30) AS day, generate_series(1, 10) AS recorder"
        )  # 213,900 rows
        await connection.execute("ANALYZE llm_spending")
    for kind in ("agent", "microdao", "credential"):
        spent = await UsageSpending(database).spent(
            kind, "subject:77", datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
        )
        assert spent == {f"recorder:{number}": 310_000_000 for number in range(1, 11)}
        async with database.transaction() as connection:
            values = {
                "kind": kind,
                "subject": "subject:77",
                "since": date(2026, 3, 1),
                "until": date(2026, 4, 1),
            }
            plan = await (
                await connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SPENT}", values)
            ).fetchone()
        assert plan is not None
        top = plan["QUERY PLAN"][0]["Plan"]
        assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 400


async def test_calls_that_an_earlier_version_recorded_are_their_own_only_attempts(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    for file in sorted(MIGRATIONS.glob("*.sql"))[:4]:
        shutil.copy(file, tmp_path)
    urls = await postgres.create_database("earlier_version")
    await migrate(urls.owner, directory=tmp_path)
    async with await psycopg.AsyncConnection.connect(urls.owner, autocommit=True) as connection:
        await connection.execute(
            "INSERT INTO llm_usage (id, request_id, occurred_at, agent_id, microdao_id, "
            "logical_model, provider, physical_model, prompt_tokens, completion_tokens, "
            "total_tokens, cached_tokens, reasoning_tokens, latency_ms, outcome, streamed, "
            "estimated, "
            "attempts, cost_usd) "
            "VALUES (gen_random_uuid(), 'r', %s, 'a', 'm', 'l', 'p', 'n', 3, 4, 7, 1, 0, 2.5, "
            "'ok', true, false, 2, 0.5)",
            (MOMENT,),
        )
    await migrate(urls.owner)
    database = Database(urls.service, events=RecordedEvents())
    await database.open()
    (row,) = await attempts(database)
    assert (
        row["number"],
        row["last"],
        row["total_tokens"],
        row["cost_usd"],
        row["call_outcome"],
    ) == (1, True, 7, Decimal("0.5"), "ok")
    (total,) = (await PostgresUsageReader(database).query(UsageFilter(start=START, end=END))).rows
    assert (total.calls, total.attempts, total.total_tokens) == (1, 1, 7)
    subjects: list[tuple[SubjectKind, str]] = [
        ("agent", "a"),
        ("microdao", "m"),
        ("credential", "anonymous"),
    ]
    for kind, subject in subjects:
        assert await UsageSpending(database).spent(kind, subject, MOMENT, END) == {"": 500_000_000}
    await database.close()
