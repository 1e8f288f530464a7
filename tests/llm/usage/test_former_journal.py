"""What the version before the spool left undelivered is in the ledger after an upgrade.

The files are that version's own: a used segment with ten records, four of them delivered, and the
file of running calls, in which the tenth call stands as well, as after a kill between two steps.
"""

import asyncio
import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from backends.llm.former_journal import START, read_running, read_segment
from backends.postgres.pool import Database
from tests.support.events import RecordedEvents
from tests.support.llm.ledger_writer import LedgerOptions, LedgerWriter

FILES = Path("tests/support/llm/former_journal")


def former(name: str) -> bytes:
    return gzip.decompress((FILES / f"{name}.gz").read_bytes())


def numbers(records: Any) -> list[int]:
    return [orjson.loads(record)["prompt_tokens"] for record in records]


async def test_a_data_directory_of_the_version_before_is_drained(
    database: Database, tmp_path: Path, events: RecordedEvents
) -> None:
    (tmp_path / "llm-usage-7-0762fc0b1078-0001.journal").write_bytes(former("segment.journal"))
    (tmp_path / "llm-usage-7-5b75e1e2f3d4.running").write_bytes(former("calls.running"))
    options = LedgerOptions(flush_interval_s=0.02, adopt_interval_s=0.1)
    writer = LedgerWriter(database, tmp_path, events=events, options=options)
    await writer.start()
    async with asyncio.timeout(60):
        while len(list(tmp_path.iterdir())) > 1:
            await asyncio.sleep(0.01)
    await writer.close()
    async with database.transaction() as connection:
        rows = await (await connection.execute("SELECT * FROM llm_usage")).fetchall()
    assert {row["prompt_tokens"]: row["outcome"] for row in rows} == {
        **dict.fromkeys(range(5, 11), "ok"),
        11: "lost",
    }
    assert writer.statistics().rejected == 0
    assert events.named("usage.calls_lost") == [{"calls": 2}]
    assert list(tmp_path.iterdir()) == []


def test_undelivered_records_of_a_segment_are_read() -> None:
    found = read_segment(former("segment.journal"))
    assert numbers(record for _, record in found.ended) == [5, 6, 7, 8, 9, 10]
    assert (found.damaged, found.running) == (0, {})


def test_damage_in_a_segment_is_passed_over() -> None:
    whole = former("segment.journal")
    data = bytearray(whole)
    place = whole.index(b"former-7")
    data[place] ^= 0xFF
    data[:START] = b"?" * START  # the marks stand at the end, too
    found = read_segment(bytes(data))
    assert numbers(record for _, record in found.ended) == [5, 6, 8, 9, 10]
    assert found.damaged > 500


def test_running_calls_are_read_and_damage_costs_its_own_slot() -> None:
    data = bytearray(former("calls.running"))
    assert sorted(numbers(read_running(bytes(data)).running.values())) == [10, 11]
    data[data.index(b"former-10")] ^= 0xFF
    found = read_running(bytes(data))
    assert numbers(found.running.values()) == [11]
    assert (found.damaged, found.readable) == (2048, True)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100])
def test_a_file_that_is_too_short_has_no_records(size: int) -> None:
    assert not read_segment(bytes(size)).readable
    assert not read_running(bytes(size)).running
