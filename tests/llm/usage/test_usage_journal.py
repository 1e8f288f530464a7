"""The usage journal: records stay until their batch was written, also after a failure."""

import contextlib
from pathlib import Path

import orjson

from backends.llm.running_calls import SUFFIX
from backends.llm.usage_journal import MappedUsageJournal
from tests.support.events import RecordedEvents
from tests.support.llm.usage import usage_record


class NotWritten(Exception):
    pass


def running_files(folder: Path) -> int:
    return len(list(folder.glob(f"*{SUFFIX}")))


async def test_a_batch_that_was_not_written_is_read_again(
    tmp_path: Path, events: RecordedEvents
) -> None:
    journal = MappedUsageJournal(tmp_path, events)
    await journal.open()
    for _ in range(5):
        journal.record(usage_record())
    with contextlib.suppress(NotWritten):
        for batch in journal.batches(3):
            with batch as records:
                assert len(records) == 3
                raise NotWritten
    assert journal.pending == 5
    sizes = []
    for batch in journal.batches(3):
        with batch as records:
            sizes.append(len(records))
    assert (sizes, journal.pending) == ([3, 2], 0)
    await journal.close()
    assert list(tmp_path.iterdir()) == []


async def test_lost_calls_that_were_not_written_are_read_again(
    tmp_path: Path, events: RecordedEvents
) -> None:
    dead = MappedUsageJournal(tmp_path, events, name="dead")
    await dead.open()
    begun = usage_record(outcome="lost")
    dead.begin(begun)
    await dead.close()  # leaves the file of calls that did not end, as a killed process does
    journal = MappedUsageJournal(tmp_path, events, name="next")
    await journal.open()
    assert not await journal.adopt()
    with contextlib.suppress(NotWritten):
        for process in await journal.lost_calls():
            async with process as calls:
                if calls:
                    raise NotWritten
    assert (running_files(tmp_path), events.named("usage.calls_lost")) == (2, [])
    found = []
    for process in await journal.lost_calls():
        async with process as calls:
            found.extend(orjson.loads(call) for call in calls)
    assert [(call["id"], call["recorder"]) for call in found] == [(str(begun.id), "dead")]
    assert (running_files(tmp_path), events.named("usage.calls_lost")) == (1, [{"calls": 1}])
    await journal.close()
