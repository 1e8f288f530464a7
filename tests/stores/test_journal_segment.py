"""A segment never gives a record that was not stored, and never loses one that was; whenever its
process dies.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.journal.segment import (
    FRAME,
    MARK,
    MARK_OFFSETS,
    MINIMUM_BYTES,
    START,
    TRAILER,
    Segment,
    UnreadableSegment,
    _checksum,
)

SIZE = MINIMUM_BYTES
PAGES = 8
records = st.lists(st.binary(min_size=1, max_size=200), max_size=30)
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


class Image:
    """The file of a segment as it is found after a crash, from its bytes at some moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def of(self, data: bytes) -> Segment:
        self._number += 1
        path = self._folder / f"image-{self._number}.journal"
        path.write_bytes(data)
        segment = Segment.adopt(path)
        assert segment is not None
        return segment

    def records(self, data: bytes) -> list[bytes]:
        segment = self.of(data)
        found = segment.read(10_000).records
        segment.close(delete=True)
        return found


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


class Fresh:
    """Makes empty segments; only the last one stays open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._last: Segment | None = None

    def segment(self, size: int = SIZE) -> Segment:
        self.close()
        self._number += 1
        self._last = Segment.create(self._folder / f"fresh-{self._number}.journal", size)
        return self._last

    def close(self) -> None:
        if self._last is not None:
            self._last.close(delete=True)
            self._last = None


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Fresh]:
    maker = Fresh(tmp_path)
    yield maker
    maker.close()


def bytes_of(segment: Segment) -> bytes:
    return segment.path.read_bytes()


@relaxed
@given(batch=records)
def test_appended_records_are_read_in_order(fresh: Fresh, image: Image, batch: list[bytes]) -> None:
    segment = fresh.segment()
    kept = [record for record in batch if segment.append(record)]
    assert segment.read(10_000).records == kept
    assert segment.pending == len(kept)
    assert image.records(bytes_of(segment)) == kept


@relaxed
@given(batch=records.filter(bool), limit=st.integers(1, 7))
def test_reading_in_portions_gives_each_record_once(
    fresh: Fresh, batch: list[bytes], limit: int
) -> None:
    segment = fresh.segment()
    kept = [record for record in batch if segment.append(record)]
    found: list[bytes] = []
    while not segment.is_empty:
        portion = segment.read(limit)
        assert 1 <= len(portion.records) <= limit
        segment.deliver(portion)
        found += portion.records
    assert found == kept
    assert segment.pending == 0


@relaxed
@given(before=records, torn=st.binary(min_size=1, max_size=200), data=st.data())
def test_a_crash_inside_an_append_shows_all_earlier_records_and_no_half_one(
    fresh: Fresh, image: Image, before: list[bytes], torn: bytes, data: st.DataObject
) -> None:
    """The new frame's bytes reach the page in any order; any part of them may be missing."""
    segment = fresh.segment()
    kept = [record for record in before if segment.append(record)]
    old = bytes_of(segment)
    if not segment.append(torn):
        return
    new = bytes_of(segment)
    changed = [position for position in range(len(old)) if old[position] != new[position]]
    arrived = data.draw(st.sets(st.sampled_from(changed), max_size=len(changed)))
    crashed = bytes(
        new[position] if position in arrived else old[position] for position in range(len(old))
    )
    expected = [*kept, torn] if len(arrived) == len(changed) else kept
    assert image.records(crashed) == expected


@relaxed
@given(batch=records.filter(bool), taken=st.integers(1, 30), data=st.data())
def test_a_crash_inside_the_mark_gives_the_old_cursor_or_the_new_one(
    fresh: Fresh, image: Image, batch: list[bytes], taken: int, data: st.DataObject
) -> None:
    segment = fresh.segment()
    kept = [record for record in batch if segment.append(record)]
    first = segment.read(1)
    segment.deliver(first)  # both marks have been in use
    old = bytes_of(segment)
    portion = segment.read(taken)
    segment.deliver(portion)
    new = bytes_of(segment)
    cut = data.draw(st.integers(MARK_OFFSETS[0], MARK_OFFSETS[1] + MARK.size))
    crashed = new[:cut] + old[cut:]
    assert image.records(crashed) in (kept[1:], kept[1 + len(portion.records) :])


@relaxed
@given(first=records, second=records, data=st.data())
def test_after_a_rewind_nothing_of_the_former_round_comes_back(
    fresh: Fresh, image: Image, first: list[bytes], second: list[bytes], data: st.DataObject
) -> None:
    segment = fresh.segment()
    for record in first:
        segment.append(record)
    segment.deliver(segment.read(10_000))
    drained = bytes_of(segment)
    segment.rewind()
    rewound = bytes_of(segment)
    cut = data.draw(st.integers(0, START))
    assert image.records(rewound[:cut] + drained[cut:]) == []
    kept = [record for record in second if segment.append(record)]
    assert image.records(bytes_of(segment)) == kept


@relaxed
@given(batch=records, position=st.integers(START, SIZE - 1), value=st.integers(0, 255))
def test_a_damaged_byte_never_gives_a_wrong_record(
    fresh: Fresh, image: Image, batch: list[bytes], position: int, value: int
) -> None:
    segment = fresh.segment()
    kept = [record for record in batch if segment.append(record)]
    damaged = bytearray(bytes_of(segment))
    damaged[position] = value
    found = image.records(bytes(damaged))
    assert found in (kept, *(kept[:number] + kept[number + 1 :] for number in range(len(kept))))


@relaxed
@given(
    before=st.integers(0, 120),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=120),
    pages=st.sets(st.integers(0, PAGES - 1), max_size=PAGES - 1),
    data=st.data(),
)
def test_damage_takes_only_the_records_that_it_touches(
    fresh: Fresh, image: Image, before: int, sizes: list[int], pages: set[int], data: st.DataObject
) -> None:
    """Any bytes in any pages but one of the two that hold the marks; the segment was used before,
    so old frames lie behind.
    """
    pages -= {data.draw(st.sampled_from((0, PAGES - 1)))}
    segment = fresh.segment(PAGES * MINIMUM_BYTES)
    for number in range(before):
        segment.append(b"former round %d" % number + b"." * 100)
    segment.deliver(segment.read(10_000))
    segment.rewind()
    kept: dict[bytes, range] = {}
    end = START
    for number, size in enumerate(sizes):
        record = b"%04d" % number + b"." * size
        if segment.append(record):
            kept[record] = range(end, end := end + FRAME.size + len(record))
    damaged = bytearray(bytes_of(segment))
    for page in pages:
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, MINIMUM_BYTES - 1)] * 2)))
        filling = data.draw(st.sampled_from([b"\0", b"\xff", b"x", b"\x05\0\0\0", os.urandom(512)]))
        begin, size = page * MINIMUM_BYTES + first, last + 1 - first
        damaged[begin : begin + size] = (filling * size)[:size]
    touched = {
        position
        for position, (was, is_now) in enumerate(zip(bytes_of(segment), damaged, strict=True))
        if was != is_now
    }
    assert image.records(bytes(damaged)) == [
        record for record, place in kept.items() if touched.isdisjoint(place)
    ]


def test_damage_inside_is_counted_and_passed_over(fresh: Fresh, image: Image) -> None:
    segment = fresh.segment()
    for record in (b"one", b"two", b"three", b"four"):
        segment.append(record)
    damaged = bytearray(bytes_of(segment))
    second = START + FRAME.size + 3
    damaged[second : second + 2 * FRAME.size + 8] = b"?" * (2 * FRAME.size + 8)
    found = image.of(bytes(damaged))
    assert found.pending == 2
    batch = found.read(10)
    assert (batch.records, batch.damaged) == ([b"one", b"four"], 2 * FRAME.size + 8)
    found.deliver(batch)
    assert found.is_empty
    found.close(delete=True)


def test_damage_under_a_living_owner_does_not_hold_up_what_is_behind(fresh: Fresh) -> None:
    segment = fresh.segment()
    for record in (b"one", b"two", b"three"):
        segment.append(record)
    with segment.path.open("r+b") as file:
        file.seek(START + FRAME.size)
        file.write(b"?" * (FRAME.size + 6))
    assert segment.read(10).records == [b"three"]
    with segment.path.open("r+b") as file:
        file.seek(START)
        file.write(bytes(200))
    batch = segment.read(10)
    assert (batch.records, batch.damaged) == ([], 3 * FRAME.size + 11)
    segment.deliver(batch)
    assert (segment.is_empty, segment.pending) == (True, 0)


def test_a_mark_of_an_earlier_round_is_ignored(fresh: Fresh, image: Image) -> None:
    segment = fresh.segment()
    segment.append(b"former")
    segment.deliver(segment.read(10))
    segment.rewind()
    segment.append(b"present")
    whole = bytes_of(segment)
    for newest in MARK_OFFSETS:
        damaged = bytearray(whole)
        for place in (newest, newest - MARK_OFFSETS[0] + SIZE - TRAILER):
            damaged[place : place + MARK.size] = b"?" * MARK.size
        assert image.records(bytes(damaged)) == [b"present"]


@relaxed
@given(garbage=st.binary(min_size=0, max_size=SIZE * 2))
def test_a_file_that_is_no_segment_is_unreadable(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "garbage.journal"
    path.write_bytes(garbage)
    with pytest.raises(UnreadableSegment):
        Segment.adopt(path)


def test_a_truncated_file_gives_what_is_left(fresh: Fresh, image: Image) -> None:
    segment = fresh.segment(2 * MINIMUM_BYTES)
    kept = []
    while segment.append(record := f"record {len(kept)}".encode()):
        kept.append(record)
    found = image.records(bytes_of(segment)[: MINIMUM_BYTES + 5])
    assert found == kept[: len(found)]
    assert 0 < len(found) < len(kept)


def test_a_full_segment_refuses_and_stays_whole(fresh: Fresh) -> None:
    segment = fresh.segment()
    room = SIZE - START - TRAILER - FRAME.size
    assert not segment.append(b"x" * (room + 1))
    assert not segment.append(b"")
    assert segment.append(b"x" * room)
    assert not segment.append(b"y")
    assert segment.read(10).records == [b"x" * room]


def test_a_segment_with_records_cannot_be_rewound(fresh: Fresh) -> None:
    segment = fresh.segment()
    segment.append(b"kept")
    with pytest.raises(ValueError, match="lost"):
        segment.rewind()


def test_the_file_is_for_the_owner_alone_and_its_space_is_reserved(fresh: Fresh) -> None:
    state = fresh.segment().path.stat()
    assert state.st_mode & 0o777 == 0o600
    assert state.st_size == SIZE
    assert state.st_blocks * 512 >= SIZE


def test_a_living_owner_keeps_its_segment_and_a_dead_one_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "owned.journal"
    program = (
        "import os, pathlib, sys, time\n"
        "from backends.journal.segment import Segment\n"
        "segment = Segment.create(pathlib.Path(sys.argv[1]), 4096)\n"
        "segment.append(b'one'); segment.append(b'two')\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert Segment.adopt(path) is None
    finally:
        owner.kill()
        owner.wait(timeout=10)
    adopted = Segment.adopt(path)
    assert adopted is not None
    assert adopted.read(10).records == [b"one", b"two"]
    adopted.close(delete=True)
    assert not path.exists()


def test_only_one_process_adopts_an_orphaned_segment(fresh: Fresh) -> None:
    segment = fresh.segment()
    second = os.open(segment.path, os.O_RDWR)
    assert Segment.adopt(segment.path) is None
    os.close(second)


def test_a_record_at_the_end_of_a_file_in_the_former_format_survives_deliveries(image, tmp_path):
    segment = Segment.create(tmp_path / "former.journal", SIZE)
    first = b"first" * 20
    assert segment.append(first)
    begin, generation = segment._tail, segment._generation
    last = b"l" * (
        SIZE - begin - FRAME.size
    )  # up to the last byte, as the former format filled a file
    data = bytearray(segment._mapping)
    data[begin:] = FRAME.pack(len(last), _checksum(generation, begin, last)) + last
    segment.close(delete=True)
    former = image.of(bytes(data))
    former.deliver(former.read(1))
    assert former.read(10).records == [last]
    former.close(delete=True)
