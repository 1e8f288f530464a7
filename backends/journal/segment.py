"""One file of a journal: framed records in a memory mapping, and a mark of the delivered ones.

    0    magic, 8 bytes
    16   mark A   generation u64, cursor u64, crc u32
    40   mark B   the valid mark with the larger (generation, cursor) counts
    64   frames   length u32, crc u32, payload
    -48  copy of mark A, at -24 of mark B   a damaged page destroys one pair at most

A store into a shared mapping is in the page cache at once, so appended records survive a `kill -9`
without a system call (but not a power cut: nothing is flushed to the disk). A frame's checksum
covers the file's generation and the frame's place, so neither a half-written frame nor one from
before a `rewind` is read as a record. Damage between two valid frames is skipped; damage at the end
looks like an unfinished append. The process that holds the file's lock owns it.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zlib import crc32

from backends.journal.mapped_file import create_locked, lock_abandoned

MAGIC = b"DAARJRN1"
MARK = struct.Struct("<QQI")
FRAME = struct.Struct("<II")
PLACE = struct.Struct("<QQI")
MARK_OFFSETS = (16, 40)
TRAILER = 48
START = 64
SUFFIX = ".journal"
DRAFT_SUFFIX = ".draft"
MINIMUM_BYTES = 4096
MAX_RECORD = (1 << 24) - 1
"""Bytes of a record. The fourth byte of every frame is zero, by which frames are found behind
damage.
"""


class UnreadableSegment(Exception):
    """The file is not a segment, or its head is destroyed."""


@dataclass(frozen=True)
class RecordBatch:
    """Undelivered records in order, the cursor after the last, and the number of damaged bytes."""

    records: list[bytes]
    end: int
    damaged: int = 0


class Segment:
    """A mapped file. Not thread-safe; only `create`, `adopt` and `close` touch the file system.

    `pending` is the number of undelivered records.
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
        """Creates an empty, locked segment of `size` bytes. Raises OSError as `create_locked`."""
        mark = _mark(1, START)
        head = {0: MAGIC, MARK_OFFSETS[0]: mark, _copy(MARK_OFFSETS[0], size): mark}
        return cls(path, *create_locked(path, path.with_suffix(DRAFT_SUFFIX), size, head))

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """Takes over a segment whose owner is gone; returns None while it is owned.

        Raises:
            UnreadableSegment: the file is not a segment.
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
        """Whether all records were delivered."""
        return self._cursor == self._tail

    def append(self, record: bytes) -> bool:
        """Stores a record of 1 to `MAX_RECORD` bytes if there is room, without a system call.

        When the process dies, the record is there completely or not at all.
        """
        begin, length = self._tail, len(record)
        end = begin + FRAME.size + length
        if end > len(self._mapping) - TRAILER or not 0 < length <= MAX_RECORD:
            return False
        self._mapping[begin:end] = (
            FRAME.pack(length, _checksum(self._generation, begin, record)) + record
        )
        self._tail = end
        self.pending += 1
        return True

    def read(self, limit: int) -> RecordBatch:
        """Returns up to `limit` undelivered records, skipping damage; does not mark them."""
        records: list[bytes] = []
        position, damaged = self._cursor, 0
        while position < self._tail and len(records) < limit:
            record = self._record_at(position)
            if record is None:
                found = self._next_frame(position, self._tail)
                damaged += found - position
                position = found
                continue
            records.append(record)
            position += FRAME.size + len(record)
        return RecordBatch(records, position, damaged)

    def deliver(self, batch: RecordBatch) -> None:
        """Marks the records of the latest batch as delivered."""
        self._write_mark(self._generation, batch.end)
        self.pending = 0 if self.is_empty else self.pending - len(batch.records)

    def rewind(self) -> None:
        """Begins again at the start of the file. Raises ValueError unless all was delivered."""
        if not self.is_empty:
            raise ValueError("records would be lost")
        self._write_mark(self._generation + 1, START)
        # The second mark, too: none of the former generation may remain to fall back on.
        self._write_mark(self._generation, START)
        self._tail = START

    def find_tail(self) -> None:
        """Finds the end of the last valid frame, which a former owner appended."""
        # Bytes that were never written need no search.
        end = len(self._mapping[:-TRAILER].rstrip(b"\0")) + FRAME.size
        position = self._tail
        while position < end:
            record = self._record_at(position)
            if record is None:
                position = self._next_frame(position, end)
                continue
            position += FRAME.size + len(record)
            self._tail = position
            self.pending += 1

    def close(self, *, delete: bool) -> None:
        """Unmaps and unlocks the file. It is deleted first, so that nobody adopts it."""
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

    def _next_frame(self, position: int, end: int) -> int:
        """Returns the place of the next valid frame after `position`, `end` when there is none."""
        while (zero := self._mapping.find(b"\0", position + 4, end)) >= 0:
            position = zero - 3
            if self._record_at(position) is not None:
                return position
        return end

    def _write_mark(self, generation: int, cursor: int) -> None:
        slot = 1 - self._slot  # the current mark stays valid while the other one is written
        mark = _mark(generation, cursor)
        offsets = [MARK_OFFSETS[slot]]
        # Files of versions without copies may have records there.
        if self._tail <= len(self._mapping) - TRAILER:
            offsets.append(_copy(offsets[0], len(self._mapping)))
        for offset in offsets:
            self._mapping[offset : offset + MARK.size] = mark
        self._slot, self._generation, self._cursor = slot, generation, cursor


def _checksum(generation: int, position: int, record: bytes) -> int:
    return crc32(record, crc32(PLACE.pack(generation, position, len(record))))


def _mark(generation: int, cursor: int) -> bytes:
    return MARK.pack(generation, cursor, crc32(PLACE.pack(generation, cursor, 0)))


def _copy(offset: int, size: int) -> int:
    """Returns the offset of the copy of the mark at `offset`."""
    return size - TRAILER - MARK_OFFSETS[0] + offset


def _newest_mark(mapping: mmap.mmap) -> tuple[int, tuple[int, int]]:
    valid = []
    for slot, offset in enumerate(MARK_OFFSETS):
        for place in (offset, _copy(offset, len(mapping))):
            generation, cursor, checksum = MARK.unpack_from(mapping, place)
            if checksum == crc32(PLACE.pack(generation, cursor, 0)) and START <= cursor <= len(
                mapping
            ):
                valid.append(((generation, cursor), slot))
    if not valid:
        raise UnreadableSegment
    mark, slot = max(valid)
    return slot, mark
