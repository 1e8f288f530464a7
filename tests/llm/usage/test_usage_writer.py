"""The ledger's writer on a real PostgreSQL: nothing lost, nothing twice, no wait for callers."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from backends.postgres.migrate import migrate
from backends.postgres.pool import Database
from contracts.errors import ConfigurationError, Overloaded
from contracts.llm.usage import UsageRecord
from launcher.postgres import DatabaseUrls, PostgresServer
from tests.support.events import RecordedEvents
from tests.support.llm.ledger_writer import LedgerOptions, LedgerWriter, leave_records
from tests.support.llm.usage import usage_record
from tests.support.patience import stopwatch

QUICK = LedgerOptions(flush_interval_s=0.02, adopt_interval_s=0.2, max_backoff_s=0.2)
SMALL = replace(QUICK, file_bytes=16384, max_bytes=4 * 16384)


@asynccontextmanager
async def writing(
    database: Database,
    folder: Path,
    options: LedgerOptions = QUICK,
    events: RecordedEvents | None = None,
) -> AsyncIterator[LedgerWriter]:
    writer = LedgerWriter(database, folder, events=events or RecordedEvents(), options=options)
    await writer.start()
    try:
        yield writer
    finally:
        await writer.close(timeout_s=30)


async def until(condition: Any, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def stored(database: Database) -> list[dict[str, Any]]:
    async with database.transaction() as connection:
        return await (await connection.execute("SELECT * FROM llm_usage ORDER BY id")).fetchall()


async def test_every_field_arrives_as_it_was(database: Database, tmp_path: Path) -> None:
    records = [
        usage_record(
            channel_id='канал ʼ" \\ {}',
            ttft_ms=3.25,
            outcome="cancelled",
            streamed=True,
            estimated=True,
            attempts=3,
        ),
        usage_record(cost_usd=None, agent_id="nul \0 and \ud800 surrogate"),
    ]
    async with writing(database, tmp_path) as writer:
        for record in records:
            writer.record(record)
        await until(lambda: writer.statistics().written == 2)
    fields = [field.name for field in dataclasses.fields(UsageRecord) if field.name != "tries"]
    rows = {row["id"]: {name: row[name] for name in fields} for row in await stored(database)}
    assert rows == {
        record.id: {name: getattr(record, name) for name in fields} for record in records
    }
    assert list(tmp_path.iterdir()) == []


async def test_a_call_costs_one_write_when_it_begins_and_one_when_it_ends(
    database: Database, tmp_path: Path
) -> None:
    def calls() -> list[int]:
        lines = Path("/proc/thread-self/io").read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("sysc")]

    async with writing(database, tmp_path) as writer:
        record = usage_record()
        first, second = calls(), calls()
        for _ in range(1000):
            writer.record(record)
        third = calls()
    looking = [after - before for before, after in zip(first, second, strict=True)]
    made = [after - before for before, after in zip(second, third, strict=True)]
    assert made == [looking[0], looking[1] + 2 * 1000]


async def test_many_records_in_batches(database: Database, tmp_path: Path) -> None:
    async with writing(database, tmp_path) as writer:
        for _ in range(3000):
            writer.record(usage_record())
        await until(lambda: writer.statistics().written == 3000)
        statistics = writer.statistics()
    assert (
        statistics.queued,
        statistics.dropped,
        statistics.rejected,
        statistics.failing_for_s,
    ) == (0, 0, 0, None)
    assert len(await stored(database)) == 3000


async def test_closing_writes_what_is_queued(database: Database, tmp_path: Path) -> None:
    async with writing(database, tmp_path, replace(QUICK, flush_interval_s=60.0)) as writer:
        for _ in range(1200):
            writer.record(usage_record())
    assert len(await stored(database)) == 1200
    assert list(tmp_path.iterdir()) == []


async def test_a_journal_left_behind_is_adopted_at_the_start_and_later(
    database: Database, tmp_path: Path
) -> None:
    leave(tmp_path, 700)
    async with writing(database, tmp_path) as writer:
        await until(lambda: writer.statistics().written == 700)
        leave(tmp_path, 50)
        await until(lambda: writer.statistics().written == 750)
        await until(lambda: len(list(tmp_path.iterdir())) == 1)  # its own file
    assert len(await stored(database)) == 750


async def test_a_damaged_page_costs_only_its_own_records_and_is_logged(
    database: Database, tmp_path: Path, events: RecordedEvents
) -> None:
    left = leave(tmp_path, 200)
    with left.open("r+b") as file:
        file.write(b"?" * 4096)
        file.seek(8 * 4096)
        file.write(b"\0" * 4096)
    async with writing(database, tmp_path, events=events) as writer:
        await until(lambda: not left.exists())
        statistics = writer.statistics()
    rows = len(await stored(database))
    assert 170 < rows < 200
    assert (statistics.written, statistics.queued) == (rows, 0)
    damages = [
        event["bytes"] for event in events.named("journal.damaged") if event["file"] == left.name
    ]
    assert len(damages) >= 1
    assert sum(damages) >= 2 * 4096 - 64


async def test_several_writers_share_the_orphans(database: Database, tmp_path: Path) -> None:
    for _ in range(12):
        leave(tmp_path, 40)
    async with (
        writing(database, tmp_path) as one,
        writing(database, tmp_path) as other,
        writing(database, tmp_path) as third,
    ):
        await until(
            lambda: sum(writer.statistics().written for writer in (one, other, third)) == 480
        )
    assert len(await stored(database)) == 480
    assert list(tmp_path.iterdir()) == []


async def test_a_record_delivered_twice_is_one_row(database: Database, tmp_path: Path) -> None:
    record = usage_record()
    async with writing(database, tmp_path) as writer:
        writer.record(record)
        writer.record(record)
        await until(lambda: writer.statistics().queued == 0)
        writer.record(record)
        await until(lambda: writer.statistics().queued == 0)
        assert writer.statistics().written == 1
    assert len(await stored(database)) == 1


async def test_one_bad_row_does_not_hold_up_the_others(
    database: Database, tmp_path: Path, events: RecordedEvents
) -> None:
    impossible = usage_record()
    impossible.prompt_tokens = -5
    records = [usage_record(prompt_tokens=number) for number in range(10)]
    leave_records(
        tmp_path,
        [
            *(as_json(record) for record in records),
            b'{"id": "no uuid"}',
            b'{"id": "00000000-0000-7000-8000-000000000009", "agent_id": null}',
            as_json(impossible),
            as_json(usage_record()),
        ],
    )
    async with writing(database, tmp_path, events=events) as writer:
        await until(lambda: writer.statistics().queued == 0 and writer.statistics().written > 0)
        assert (writer.statistics().written, writer.statistics().rejected) == (11, 3)
    assert [event["record_id"] for event in events.named("usage.rejected")][:2] == [
        "no uuid",
        "00000000-0000-7000-8000-000000000009",
    ]
    assert list(tmp_path.iterdir()) == []


async def test_a_missing_table_keeps_the_records(
    postgres: PostgresServer, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    bare = await postgres.create_database("without_tables")
    pool = Database(bare.service, events=RecordedEvents())
    await pool.open()
    events = RecordedEvents()
    async with writing(pool, tmp_path, events=events) as writer:
        writer.record(usage_record())
        await until(lambda: writer.statistics().failing_for_s is not None)
        assert (writer.statistics().queued, writer.statistics().rejected) == (1, 0)
        await writer.close(timeout_s=0.3)
    await pool.close()
    assert events.named("usage.left_in_journal") == [{"records": 1}]
    assert len(list(tmp_path.iterdir())) == 1


async def test_a_full_spool_refuses_calls_before_they_begin_and_loses_none(
    database: Database, tmp_path: Path, events: RecordedEvents
) -> None:
    async with writing(database, tmp_path, replace(SMALL, flush_interval_s=60.0), events) as writer:
        begun, refusals = begin_calls(writer, 400)
        for record, ticket in begun:
            writer.record(record, ticket)
        statistics = writer.statistics()
        assert statistics.journal_bytes <= SMALL.max_bytes
        assert (statistics.queued, statistics.dropped) == (len(begun), 0)
        assert len(begun) >= 4
        assert {(error.status, error.retryable) for error in refusals} == {(503, True)}
    rows = await stored(database)
    assert {row["id"] for row in rows} == {record.id for record, _ in begun}
    assert len(events.named("usage.journal_cannot_grow")) == 1
    assert events.named("usage.dropped") == []


async def test_calls_are_admitted_again_when_the_spool_is_drained(
    database: Database, tmp_path: Path
) -> None:
    async with writing(database, tmp_path, SMALL) as writer:
        begun, refusals = begin_calls(writer, 400)
        assert refusals
        for record, ticket in begun:
            writer.record(record, ticket)
        await until(lambda: writer.statistics().queued == 0)
        for _ in range(10):
            await until(lambda: not begin_and_end(writer))
    assert len(await stored(database)) == len(begun) + 10


async def test_a_folder_that_cannot_be_written(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError):
        await LedgerWriter(database, tmp_path / "file" / "journal", events=RecordedEvents()).start()


async def test_while_postgresql_is_away_records_wait_and_then_arrive(
    tmp_path: Path, server_folder: Path, events: RecordedEvents
) -> None:
    async with PostgresServer(server_folder, durable=False) as server:
        urls = await server.create_database(f"ledger_{tmp_path.name.lower()}")
        await migrate(urls.owner)
        pool = Database(urls.service, events=events)
        await pool.open()
        async with writing(pool, tmp_path / "journal", events=events) as writer:
            writer.record(usage_record())
            await until(lambda: writer.statistics().written == 1)
            await server.stop()
            began = time.thread_time()
            for _ in range(500):
                writer.record(usage_record())
            assert time.thread_time() - began < 1.0
            assert writer.statistics().written == 1  # not one of them waited for the database
            await until(lambda: writer.statistics().failing_for_s is not None)
            assert writer.statistics().queued == 500
            await server.start()
            await until(lambda: writer.statistics().written == 501)
            assert writer.statistics().failing_for_s is None
        assert len(await stored(pool)) == 501
        await pool.close()
    assert [len(events.named(name)) for name in ("usage.not_written", "usage.written_again")] == [
        1,
        1,
    ]


async def test_closing_while_postgresql_is_away_leaves_the_file(
    tmp_path: Path, server_folder: Path, events: RecordedEvents
) -> None:
    async with PostgresServer(server_folder, durable=False) as server:
        urls = await server.create_database(f"ledger_{tmp_path.name.lower()}")
        await migrate(urls.owner)
        pool = Database(urls.service, events=events)
        await pool.open()
        await server.stop()
        writer = LedgerWriter(pool, tmp_path / "journal", events=events, options=QUICK)
        await writer.start()
        for _ in range(20):
            writer.record(usage_record())
        async with stopwatch() as watch:
            await writer.close(timeout_s=0.5)
            assert watch.seconds < 1.5
        await server.start()
        async with writing(pool, tmp_path / "journal") as successor:
            await until(lambda: successor.statistics().written == 20)
        await pool.close()


def begin_calls(
    writer: LedgerWriter, count: int
) -> tuple[list[tuple[UsageRecord, int]], list[Overloaded]]:
    """Lets calls begin; returns those that were admitted, with their tickets, and refusals."""
    begun, refusals = [], []
    for _ in range(count):
        record = usage_record()
        try:
            begun.append((record, writer.begin(record)))
        except Overloaded as error:
            refusals.append(error)
    return begun, refusals


def begin_and_end(writer: LedgerWriter) -> list[Overloaded]:
    begun, refusals = begin_calls(writer, 1)
    for record, ticket in begun:
        writer.record(record, ticket)
    return refusals


def as_json(record: UsageRecord) -> bytes:
    return orjson.dumps(record, default=str)


def leave(folder: Path, records: int) -> Path:
    """What a dead process leaves: a file with undelivered records."""
    return leave_records(folder, [as_json(usage_record()) for _ in range(records)])
