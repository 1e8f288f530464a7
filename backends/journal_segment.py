"""One file of a journal: records framed in a memory mapping, and a durable mark of how far they were delivered.

    0    magic, 8 bytes
    16   mark A   generation u64, cursor u64, crc u32      the valid one with the larger (generation, cursor) counts
    40   mark B
    64   frames   length u32, crc u32, payload             up to the first frame that is not valid

A store into a shared mapping is in the page cache at once, so what was appended outlives a `kill -9` of the process
without a system call (not a power cut: nothing is forced to the disk). A frame's checksum covers the generation of
the file and its own place, so neither a half-written frame nor one left over from before a `rewind` is ever taken
for a record. The process that holds the file's lock owns it; the kernel frees the lock when its owner dies.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zlib import crc32

from backends.mapped_file import create_locked, lock_abandoned

MAGIC = b"DAARJRN1"
MARK = struct.Struct("<QQI")
FRAME = struct.Struct("<II")
PLACE = struct.Struct("<QQI")
MARK_OFFSETS = (16, 40)
START = 64
SUFFIX = ".journal"
DRAFT_SUFFIX = ".draft"
MINIMUM_BYTES = 4096


class UnreadableSegment(Exception):
    """The file is no segment, or its head is destroyed."""


@dataclass(frozen=True)
class Batch:
    """Undelivered records of a segment in their order, and the cursor after the last."""

    records: list[bytes]
    end: int


class Segment:
    """A mapped file. Not thread-safe; only `create`, `adopt` and `close` touch the file system.

    `pending` is the number of records that were not delivered.
    """

    def __init__(self, path: Path, descriptor: int, mapping: mmap.mmap) -> None:
        self.path = path
        self._descriptor = descriptor
        self._mapping = mapping
        self._slot, (self._generation, self._cursor) = _newest_mark(mapping)
        self._tail = self._cursor
        self.pending = 0

    @classmethod
    def create(cls, path: Path, size: int) -> Self:
        """Makes an empty segment of `size` bytes, locked, readable by the owner alone. Raises OSError as `create_locked`."""
        head = {0: MAGIC, MARK_OFFSETS[0]: _mark(1, START)}
        return cls(path, *create_locked(path, path.with_suffix(DRAFT_SUFFIX), size, head))

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """Takes over a segment whose owner is gone, with everything it had not delivered; None while it is owned.

        Raises:
            UnreadableSegment: the file is no segment.
            OSError: it cannot be opened.
        """
        if (found := lock_abandoned(path)) is None:
            return None
        descriptor, size = found
        try:
            if size < MINIMUM_BYTES:
                raise UnreadableSegment
            segment = cls(path, descriptor, mmap.mmap(descriptor, size))
        except BaseException:
            os.close(descriptor)
            raise
        segment.find_tail()
        return segment

    @property
    def size(self) -> int:
        return len(self._mapping)

    @property
    def is_empty(self) -> bool:
        """Whether everything in it was delivered."""
        return self._cursor == self._tail

    def append(self, record: bytes) -> bool:
        """Stores one record (not empty) if there is room. No system call; whole or not at all, whenever the process dies."""
        begin, length = self._tail, len(record)
        end = begin + FRAME.size + length
        if end > len(self._mapping) or length == 0:
            return False
        self._mapping[begin:end] = FRAME.pack(length, _checksum(self._generation, begin, record)) + record
        self._tail = end
        self.pending += 1
        return True

    def read(self, limit: int) -> Batch:
        """Returns at most `limit` undelivered records; reading does not deliver."""
        records: list[bytes] = []
        position = self._cursor
        while position < self._tail and len(records) < limit:
            record = self._record_at(position)
            if record is None:
                break
            records.append(record)
            position += FRAME.size + len(record)
        return Batch(records, position)

    def deliver(self, batch: Batch) -> None:
        """Marks the records of the batch, the last that was read, as delivered."""
        self._write_mark(self._generation, batch.end)
        self.pending -= len(batch.records)

    def rewind(self) -> None:
        """Starts over at the beginning of the file. It must be empty."""
        if not self.is_empty:
            raise ValueError("records would be lost")
        self._write_mark(self._generation + 1, START)
        self._tail = START

    def find_tail(self) -> None:
        """Finds the end of the valid frames behind the cursor: what a former owner had appended."""
        position = self._cursor
        while (record := self._record_at(position)) is not None:
            position += FRAME.size + len(record)
            self.pending += 1
        self._tail = position

    def close(self, *, delete: bool) -> None:
        """Unmaps the file and gives up its lock; deleted first, so that nobody adopts what is done with."""
        if delete:
            self.path.unlink(missing_ok=True)
        self._mapping.close()
        os.close(self._descriptor)

    def _record_at(self, position: int) -> bytes | None:
        begin = position + FRAME.size
        if begin > len(self._mapping):
            return None
        length, checksum = FRAME.unpack_from(self._mapping, position)
        if length == 0 or begin + length > len(self._mapping):
            return None
        record = self._mapping[begin : begin + length]
        return record if _checksum(self._generation, position, record) == checksum else None

    def _write_mark(self, generation: int, cursor: int) -> None:
        slot = 1 - self._slot  # the mark in force stays whole while the other is written
        offset = MARK_OFFSETS[slot]
        self._mapping[offset : offset + MARK.size] = _mark(generation, cursor)
        self._slot, self._generation, self._cursor = slot, generation, cursor


def _checksum(generation: int, position: int, record: bytes) -> int:
    return crc32(record, crc32(PLACE.pack(generation, position, len(record))))


def _mark(generation: int, cursor: int) -> bytes:
    return MARK.pack(generation, cursor, crc32(PLACE.pack(generation, cursor, 0)))


def _newest_mark(mapping: mmap.mmap) -> tuple[int, tuple[int, int]]:
    if mapping[: len(MAGIC)] != MAGIC:
        raise UnreadableSegment
    valid = []
    for slot, offset in enumerate(MARK_OFFSETS):
        generation, cursor, checksum = MARK.unpack_from(mapping, offset)
        if checksum == crc32(PLACE.pack(generation, cursor, 0)) and START <= cursor <= len(mapping):
            valid.append(((generation, cursor), slot))
    if not valid:
        raise UnreadableSegment
    mark, slot = max(valid)
    return slot, mark
