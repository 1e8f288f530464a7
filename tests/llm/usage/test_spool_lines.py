"""Lines of a spool: what was written whole is read, whatever happened to the rest of the file."""

import os
from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.llm.former_journal import read_segment
from backends.llm.spool_lines import (
    BEGUN,
    DELIVERED,
    ENDED,
    SEALED,
    SpoolLines,
    read_lines,
    spool_line,
)

texts = st.binary(min_size=1, max_size=200).map(lambda data: data.replace(b"\n", b"-"))
calls = st.lists(st.tuples(texts, st.booleans()), max_size=30)
relaxed = settings(deadline=None)


def written(steps: Sequence[tuple[bytes, bool]]) -> bytes:
    """Lines of calls that begin, and some of them end."""
    lines = []
    for ticket, (record, ends) in enumerate(steps):
        lines.append(spool_line(BEGUN, ticket, b"began " + record))
        if ends:
            lines.append(spool_line(ENDED, ticket, record))
    return b"".join(lines)


def ended(found: SpoolLines) -> list[bytes]:
    return [record for _, record in found.ended]


@relaxed
@given(steps=calls, before=st.integers(0, 10_000))
def test_ended_calls_are_read_in_order_and_the_others_are_running(
    steps: list[tuple[bytes, bool]], before: int
) -> None:
    found = read_lines(written(steps) + bytes(100), before)
    assert ended(found) == [record for record, ends in steps if ends]
    assert found.running == {
        ticket: b"began " + record for ticket, (record, ends) in enumerate(steps) if not ends
    }
    assert (found.damaged, found.readable) == (0, bool(steps))


@relaxed
@given(steps=calls, count=st.integers(0, 30))
def test_delivered_records_are_not_read_again(steps: list[tuple[bytes, bool]], count: int) -> None:
    head = len(spool_line(DELIVERED, 0))
    all_ended = read_lines(written(steps), head).ended
    count = min(count, len(all_ended))
    mark = all_ended[count - 1][0] if count else head
    found = read_lines(spool_line(DELIVERED, mark) + written(steps))
    assert list(found.ended) == list(all_ended)[count:]


@relaxed
@given(steps=calls)
def test_running_calls_of_a_sealed_file_are_in_another(steps: list[tuple[bytes, bool]]) -> None:
    found = read_lines(spool_line(SEALED, 0) + written(steps))
    assert (found.running, ended(found)) == ({}, [record for record, ends in steps if ends])


@relaxed
@given(before=calls, torn=texts, data=st.data())
def test_a_crash_inside_a_write_shows_all_earlier_records_and_no_half_one(
    before: list[tuple[bytes, bool]], torn: bytes, data: st.DataObject
) -> None:
    """Any part of the new line's bytes may be missing."""
    whole, line = written(before), spool_line(ENDED, 1_000, torn)
    missing = data.draw(st.sets(st.sampled_from(range(len(line))), max_size=len(line)))
    arrived = bytes(0 if place in missing else byte for place, byte in enumerate(line))
    found = read_lines(whole + arrived + bytes(50))
    kept = [record for record, ends in before if ends]
    # Without its line breaks at both ends the last line is still whole.
    is_whole = all(line[place] == 0 or place in {0, len(line) - 1} for place in missing)
    assert ended(found) in ([*kept, torn], kept) if is_whole else ended(found) == kept


@relaxed
@given(length=st.integers(0, 60))
def test_a_last_line_cut_short_is_no_damage(length: int) -> None:
    first, second = spool_line(ENDED, 1, b"one"), spool_line(ENDED, 2, b"two" * 20)
    found = read_lines(first + second[:length] + bytes(50))
    assert (ended(found), found.damaged) == ([b"one"], 0)


@relaxed
@given(
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=120),
    cuts=st.lists(st.tuples(st.integers(0, 80_000), st.integers(1, 5_000)), max_size=4),
    data=st.data(),
)
def test_damage_takes_only_the_records_that_it_touches(
    sizes: list[int], cuts: list[tuple[int, int]], data: st.DataObject
) -> None:
    kept: dict[bytes, range] = {}
    lines = b""
    for number, size in enumerate(sizes):
        record = b"%04d" % number + b"." * size
        line = spool_line(ENDED, number, record)
        kept[record] = range(len(lines), len(lines) + len(line))
        lines += line
    damaged = bytearray(lines)
    for place, length in cuts:
        filling = data.draw(st.sampled_from([b"\0", b"\xff", b"x", b"\n", os.urandom(512)]))
        begin = place % len(lines)
        end = min(begin + length, len(lines))
        damaged[begin:end] = (filling * length)[: end - begin]
    touched = {
        place
        for place, (was, is_now) in enumerate(zip(lines, damaged, strict=True))
        if was != is_now
    }
    found = ended(read_lines(bytes(damaged)))
    assert [record for record in kept if record in set(found)] == found
    assert {record for record, place in kept.items() if touched.isdisjoint(place)} <= set(found)


def test_damage_inside_is_counted_and_passed_over() -> None:
    one, two, three = (spool_line(ENDED, number, b"record") for number in range(3))
    found = read_lines(one + b"?" * len(two) + three)
    assert (len(found.ended), found.damaged) == (2, len(two))


@relaxed
@given(garbage=st.binary(max_size=8192))
@example(garbage=b"00000000")  # the checksum of nothing
def test_what_is_no_spool_is_not_readable(garbage: bytes) -> None:
    assert not read_lines(garbage).readable
    assert not read_segment(garbage).readable
