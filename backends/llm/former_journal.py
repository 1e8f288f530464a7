"""Reads what the version before the spool left undelivered. Pure.

Records of ended calls lay in `.journal` files, as frames (length, checksum over generation, place
and record) behind two marks (generation, cursor behind the delivered records) that the file's last
bytes repeat; records of running calls in `.running` files, in slots of 2 KiB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from zlib import crc32

from backends.llm.spool_lines import SpoolLines

MARK = struct.Struct("<QQI")
MARKS_BYTES = 48
HEAD = struct.Struct("<II")
PLACE = struct.Struct("<QQI")
START = 64
SLOT_BYTES = 2048


def read_segment(data: bytes) -> SpoolLines:
    """Reads a `.journal` file."""
    found = SpoolLines()
    if len(data) < START + MARKS_BYTES:
        return found
    places = (16, 40, len(data) - MARKS_BYTES, len(data) - MARKS_BYTES // 2)
    marks = [
        (generation, cursor)
        for generation, cursor, checksum in (MARK.unpack_from(data, place) for place in places)
        if checksum == _checksum(generation, cursor, b"") and START <= cursor <= len(data)
    ]
    if marks:
        found.readable = True
        generation, end = max(marks)
        for place, record in _frames(data[:-MARKS_BYTES].rstrip(b"\0"), generation, end):
            found.damaged += place - end
            end = place + HEAD.size + len(record)
            found.ended.append((end, record))
    return found


def read_running(data: bytes) -> SpoolLines:
    """Reads a `.running` file."""
    found = SpoolLines(readable=len(data) > START)
    for place in range(START, len(data) - HEAD.size, SLOT_BYTES):
        length, checksum = HEAD.unpack_from(data, place)
        record = data[place + HEAD.size : place + HEAD.size + length]
        if length and crc32(record) == checksum:
            found.running[place] = record
        elif length:
            found.damaged += SLOT_BYTES
    return found


def _frames(data: bytes, generation: int, place: int) -> Iterator[tuple[int, bytes]]:
    """Yields places and records of valid frames from `place` on."""
    while place + HEAD.size < len(data):
        length, checksum = HEAD.unpack_from(data, place)
        begin = place + HEAD.size
        record = data[begin : begin + length]
        if length and _checksum(generation, place, record) == checksum:
            yield place, record
            place = begin + length
        elif (zero := data.find(b"\0", place + 4)) >= 0:
            place = zero - 3  # the fourth byte of a frame is zero, and JSON has no zeros
        else:
            return


def _checksum(generation: int, place: int, record: bytes) -> int:
    return crc32(record, crc32(PLACE.pack(generation, place, len(record))))


READERS = {".journal": read_segment, ".running": read_running}
