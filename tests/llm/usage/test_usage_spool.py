"""The usage spool: what it admitted is written once, whatever happens to its processes."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.llm.spool_file import READ_BYTES, SUFFIX, SpoolFile
from backends.llm.usage_spool import UsageSpool
from contracts.errors import Overloaded
from tests.support.events import RecordedEvents
from tests.support.llm.spool import (
    FILE,
    Ledger,
    NotWritten,
    begin_all,
    call,
    crash,
    drained,
    opened,
)
from tests.support.llm.usage import usage_record


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def files(folder: Path) -> int:
    return len(list(folder.glob(f"*{SUFFIX}")))


async def test_a_batch_that_was_not_written_is_read_again(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger
) -> None:
    spool = await opened(tmp_path, events)
    for _ in range(5):
        call(spool)
    ledger.away = True
    with pytest.raises(NotWritten):
        await spool.drain(3, ledger.write)
    assert spool.pending == 5
    ledger.away = False
    await spool.drain(3, ledger.write)
    assert (ledger.sizes, spool.pending) == ([3, 2], 0)
    await spool.close()
    assert list(tmp_path.iterdir()) == []


async def test_lost_calls_that_were_not_written_are_read_again(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger
) -> None:
    dead = UsageSpool(tmp_path, events, name="dead")
    await dead.open()
    begun = usage_record(outcome="lost")
    dead.begin(begun)
    await dead.close()  # leaves the file of calls that did not end, as a killed process does
    spool = UsageSpool(tmp_path, events, name="next")
    await spool.open()
    await spool.adopt()
    ledger.away = True
    with pytest.raises(NotWritten):
        await spool.drain(100, ledger.write)
    assert (files(tmp_path), events.named("usage.calls_lost")) == (2, [])
    ledger.away = False
    await spool.drain(100, ledger.write)
    assert [(record["id"], record["recorder"]) for record in ledger.records] == [
        (str(begun.id), "dead")
    ]
    assert (files(tmp_path), events.named("usage.calls_lost")) == (1, [{"calls": 1}])
    await spool.close()


async def test_a_steady_flow_needs_one_file_and_goes_on_in_another_when_it_is_full(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger
) -> None:
    spool = await opened(tmp_path, events)
    first = {path.name for path in tmp_path.iterdir()}
    ids = []
    for number in range(2_000):
        ids.append(call(spool))
        if number % 10 == 0:
            await spool.drain(100, ledger.write)
            assert files(tmp_path) <= 2
    await spool.drain(100, ledger.write)
    assert ledger.ids == ids
    assert files(tmp_path) == 1
    assert first.isdisjoint(path.name for path in tmp_path.iterdir())
    await spool.close()
    assert list(tmp_path.iterdir()) == []


async def test_calls_that_run_while_files_change_end_once(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger
) -> None:
    spool = await opened(tmp_path, events)
    running = [(record := usage_record(), spool.begin(record)) for _ in range(30)]
    others = [call(spool) for _ in range(300)]
    assert files(tmp_path) > 2
    ended, lost = running[:20], running[20:]
    for record, ticket in ended:
        spool.record(record, ticket)
    crash(spool)
    heir = await opened(tmp_path, events)
    await drained(heir, ledger)
    assert sorted(ledger.ids) == sorted(
        [*others, *(record.id for record, _ in ended), *(record.id for record, _ in lost)]
    )
    assert sum(event["calls"] for event in events.named("usage.calls_lost")) == len(lost)
    assert files(tmp_path) == 1
    await heir.close()


async def test_a_crash_between_a_new_file_and_the_seal_of_the_old_one_loses_no_call_twice(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await opened(tmp_path, events)
    begun = usage_record(outcome="lost")
    spool.begin(begun)
    monkeypatch.setattr(SpoolFile, "seal", lambda _: crash(spool))
    assert begin_all(spool)
    assert files(tmp_path) == 2
    heir = await opened(tmp_path, events)
    await drained(heir, ledger)
    assert ledger.ids.count(begun.id) == 2, "both files have it; the ledger knows the id"
    assert {record["outcome"] for record in ledger.records} == {"ok", "lost"}
    await heir.close()


async def test_the_position_is_remembered(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger
) -> None:
    spool = await opened(tmp_path, events)
    ids = [call(spool) for _ in range(25)]
    ledger.last = 2
    with pytest.raises(NotWritten):
        await spool.drain(10, ledger.write)
    crash(spool)
    assert ledger.ids == ids[:20]
    ledger.last = -1
    heir = await opened(tmp_path, events)
    await drained(heir, ledger)
    assert ledger.ids == ids
    await heir.close()


async def test_more_than_is_read_at_once(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger
) -> None:
    spool = await opened(tmp_path, events, file_bytes=4 * READ_BYTES)
    ids = [call(spool) for _ in range(700)]
    assert spool._files[0].tail > 2 * READ_BYTES
    await drained(spool, ledger, rows=7)
    assert ledger.ids == ids
    await spool.close()


async def test_damage_under_a_living_owner_does_not_hold_up_what_is_behind(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger
) -> None:
    spool = await opened(tmp_path, events)
    ids = [call(spool) for _ in range(10)]
    path = next(tmp_path.iterdir())
    with path.open("r+b") as file:
        file.seek(path.read_bytes().index(str(ids[3]).encode()))
        file.write(b"?" * 2000)
    await drained(spool, ledger)
    assert spool.pending == 0
    assert 5 <= len(ledger.ids) < 10
    assert ledger.ids == [found for found in ids if found in set(ledger.ids)]
    assert sum(event["bytes"] for event in events.named("journal.damaged")) >= 2000
    await spool.close()
    assert list(tmp_path.iterdir()) == []


async def test_an_unreadable_file_is_renamed_and_reported(
    tmp_path: Path, events: RecordedEvents
) -> None:
    spool = await opened(tmp_path, events)
    (tmp_path / f"llm-usage-1-damaged{SUFFIX}").write_bytes(b"?" * FILE)
    await spool.adopt()
    await spool.adopt()
    assert (tmp_path / "llm-usage-1-damaged.unreadable").exists()
    assert events.named("journal.unreadable") == [{"file": f"llm-usage-1-damaged{SUFFIX}"}]
    await spool.close()


@pytest.mark.parametrize("content", [b"", bytes(FILE)])
async def test_a_file_whose_process_died_before_its_first_line_is_deleted(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger, content: bytes
) -> None:
    spool = await opened(tmp_path, events)
    (tmp_path / f"llm-usage-1-empty{SUFFIX}").write_bytes(content)
    await drained(spool, ledger)
    assert files(tmp_path) == 1
    assert events.named("journal.unreadable") == []
    await spool.close()


async def test_files_of_living_processes_are_not_adopted(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger
) -> None:
    one, other = await opened(tmp_path, events), await opened(tmp_path, events)
    call(one)
    await drained(other, ledger)
    assert (ledger.ids, files(tmp_path)) == ([], 2)
    await one.close()
    await other.close()


async def test_a_closed_spool_admits_no_call(tmp_path: Path, events: RecordedEvents) -> None:
    spool = await opened(tmp_path, events)
    record = usage_record()
    ticket = spool.begin(record)
    await spool.close()
    with pytest.raises(Overloaded):
        spool.begin(usage_record())
    spool.record(record, ticket)
    assert spool.dropped == 1
    assert events.named("usage.dropped") == [{"records": 1, "total": 1}]
    assert files(tmp_path) == 1, "the call is lost, not forgotten"


async def test_a_full_disk_refuses_calls_and_what_has_begun_can_end(
    tmp_path: Path, events: RecordedEvents, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    spool = await opened(tmp_path, events)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        begun = begin_all(spool)
        assert files(tmp_path) == 1, "the file that found no space is gone"
        for record, ticket in begun:
            spool.record(record, ticket)
        assert spool._files[-1].tail <= FILE, "the space was reserved"
        await spool.drain(100, ledger.write)
    assert ledger.ids == [record.id for record, _ in begun]
    (event,) = events.named("usage.journal_cannot_grow")
    assert event["reason"] == "No space left on device"
    assert call(spool)
    await spool.close()


DISK = """
import asyncio, os, pathlib, signal, sys
from tests.support.events import RecordedEvents
from tests.support.llm.spool import Ledger, begin_all, drained, opened

async def main():
    folder, events, ledger = pathlib.Path(sys.argv[1]), RecordedEvents(), Ledger()
    spool = await opened(folder, events)
    if sys.argv[2] == "write":
        begun = begin_all(spool)
        for record, ticket in begun[::2]:
            spool.record(record, ticket)
        print(len(begun), spool.dropped, *events.named("usage.journal_cannot_grow"), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    await drained(spool, ledger)
    print(len(ledger.ids), len(set(ledger.ids)))

asyncio.run(main())
"""


def test_a_disk_that_is_full_loses_no_call_also_after_a_kill(tmp_path: Path) -> None:
    """On a file system of 300 KiB, in a namespace of its own."""
    mount = f"mount -t tmpfs -o size=300k none {tmp_path}"
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*namespace, mount], check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    program = f'{sys.executable} -c "$PROGRAM" {tmp_path}'
    run = subprocess.run(
        [*namespace, f"{mount}; {program} write; {program} adopt"],
        env={**os.environ, "PROGRAM": DISK},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    first, _, second = run.stdout.strip().partition("\n")
    begun, dropped, refusal = first.split(" ", 2)
    assert "No space left on device" in refusal
    assert (int(begun) > 20, dropped) == (True, "0"), run.stderr
    assert second == f"{begun} {begun}", run.stderr


def test_the_file_is_for_the_owner_alone_and_its_space_is_reserved(tmp_path: Path) -> None:
    file = SpoolFile.create(tmp_path / "one.spool", FILE)
    state = file.path.stat()
    assert state.st_mode & 0o777 == 0o600
    assert state.st_size == FILE
    assert state.st_blocks * 512 >= FILE
    file.close(delete=True)


def test_a_living_owner_keeps_its_file_and_a_dead_one_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "owned.spool"
    program = (
        "import pathlib, sys, time\n"
        "from backends.llm.spool_file import SpoolFile\n"
        "from backends.llm.spool_lines import ENDED, spool_line\n"
        "file = SpoolFile.create(pathlib.Path(sys.argv[1]), 65536)\n"
        "file.append(spool_line(ENDED, 1, b'one')); file.append(spool_line(ENDED, 2, b'two'))\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert SpoolFile.adopt(path) is None
    finally:
        owner.kill()
        owner.wait(timeout=10)
    adopted = SpoolFile.adopt(path)
    assert adopted is not None
    assert adopted.read(10) == [b"one", b"two"]
    assert SpoolFile.adopt(path) is None, "only one process adopts it"
    adopted.close(delete=True)
    assert not path.exists()


def test_a_file_that_was_adopted_before_its_lock_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock, races = tmp_path / "raced.spool", fcntl.flock, 0

    def adopted_first(descriptor: int, operation: int) -> None:
        nonlocal races
        if not races:
            races += 1
            path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", adopted_first)
    file = SpoolFile.create(path, FILE)
    assert (races, path.stat().st_size) == (1, FILE)
    file.close(delete=True)
