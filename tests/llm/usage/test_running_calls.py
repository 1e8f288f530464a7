"""The mapped file of calls in work: unfinished calls are found after a crash."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.llm.running_calls import SLOT_BYTES, START, RunningCalls
from contracts.llm.usage import NOT_BEGUN


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def abandoned(calls: RunningCalls, folder: Path) -> RunningCalls:
    calls.close(delete=False)
    adopted = RunningCalls.adopt(files(folder)[0])
    assert adopted is not None
    return adopted


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=60), st.booleans()), max_size=12))
def test_unfinished_calls_are_found(steps: list[tuple[bytes, bool]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls, running = RunningCalls.create(folder, "calls", slots=4), {}
        for record, ends in steps:
            slot = calls.begin(record)
            if slot == NOT_BEGUN:
                assert len(running) == 4
            elif ends:
                calls.end(slot)
            else:
                running[slot] = record
        adopted = abandoned(calls, folder)
        assert sorted(adopted.unfinished()) == sorted(running.values())
        assert adopted.is_empty == (not running)
        adopted.close(delete=True)
        assert files(folder) == []


def test_a_file_in_use_is_not_adopted(tmp_path: Path) -> None:
    calls = RunningCalls.create(tmp_path, "calls", slots=2)
    assert RunningCalls.adopt(files(tmp_path)[0]) is None
    assert RunningCalls.adopt(tmp_path / "gone.running") is None
    calls.close(delete=True)


def test_a_record_that_is_too_long_is_not_kept(tmp_path: Path) -> None:
    calls = RunningCalls.create(tmp_path, "calls", slots=1)
    assert calls.begin(b"x" * SLOT_BYTES) == NOT_BEGUN
    assert calls.begin(b"x" * (SLOT_BYTES - 8)) == 0
    assert calls.begin(b"y") == NOT_BEGUN, "no slot is free"
    calls.close(delete=True)


def test_damage_takes_only_the_records_that_it_touches(tmp_path: Path) -> None:
    calls = RunningCalls.create(tmp_path, "calls", slots=3)
    for record in (b"first", b"second", b"third"):
        calls.begin(record)
    path = files(tmp_path)[0]
    calls.close(delete=False)
    data = bytearray(path.read_bytes())
    data[START + SLOT_BYTES + 9] ^= 0xFF
    data[START + 2 * SLOT_BYTES : START + 2 * SLOT_BYTES + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    adopted = RunningCalls.adopt(path)
    assert adopted is not None
    assert len(list(adopted.unfinished())) == 1
    assert adopted.damaged == 2
    adopted.close(delete=True)
    data[: START + 10] = b"?" * (START + 10)
    path.write_bytes(data)
    adopted = RunningCalls.adopt(path)
    assert adopted is not None
    assert (list(adopted.unfinished()), adopted.damaged) == ([], 3)
    adopted.close(delete=True)


def test_a_lost_head_does_not_take_the_slots_along(tmp_path: Path) -> None:
    calls = RunningCalls.create(tmp_path, "calls", slots=8)
    begun = [b"call %d" % number for number in range(8)]
    for record in begun:
        calls.begin(record)
    path = files(tmp_path)[0]
    calls.close(delete=False)
    with path.open("r+b") as file:
        file.write(b"?" * 4096)
    adopted = RunningCalls.adopt(path)
    assert adopted is not None
    assert (
        sorted(adopted.unfinished()) == begun[:6]
    )  # the last slot is taken first: the first page holds the calls 7 and 6
    assert adopted.damaged == 2
    adopted.close(delete=True)


def test_a_file_without_room_for_a_slot_is_none(tmp_path: Path) -> None:
    path = tmp_path / "calls-1.running"
    for content in (b"", b"no"):
        path.write_bytes(content)
        assert RunningCalls.adopt(path) is None
