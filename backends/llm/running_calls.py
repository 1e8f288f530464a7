"""Running calls in a memory-mapped file, so that the calls of a killed process are accounted for.

    0    magic, 8 bytes
    64   slots of 2 KiB   length u32, crc u32, the call's usage record as JSON; length 0: free

Like a segment of the journal (`backends/journal/segment.py`) the file survives a `kill -9` without
a system call, and belongs to the process that holds its lock.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from zlib import crc32

from backends.journal.mapped_file import create_locked, lock_abandoned
from contracts.llm.usage import NOT_BEGUN

MAGIC = b"DAARRUN1"
START = 64
SLOT_BYTES = 2048
SLOTS = 1024
HEAD = struct.Struct("<II")
SUFFIX = ".running"
DRAFT_SUFFIX = ".running-draft"
_FREE = HEAD.pack(0, 0)


class RunningCalls:
    """A mapped file of slots.

    Not thread-safe; only `create`, `adopt` and `close` touch the file system.
    """

    def __init__(self, path: Path, descriptor: int, mapping: mmap.mmap) -> None:
        self._path = path
        self._descriptor = descriptor
        self._mapping = mapping
        self.damaged = 0
        self._slots = (len(mapping) - START) // SLOT_BYTES
        self._free = [
            slot
            for slot in range(self._slots)
            if HEAD.unpack_from(mapping, START + slot * SLOT_BYTES)[0] == 0
        ]

    @classmethod
    def create(cls, directory: Path, name: str, slots: int = SLOTS) -> Self:
        """Makes an empty file, locked, readable by the owner alone, its space reserved.

        Raises OSError.
        """
        path = directory / f"{name}-{os.getpid()}-{secrets.token_hex(6)}{SUFFIX}"
        return cls(
            path,
            *create_locked(
                path, path.with_suffix(DRAFT_SUFFIX), START + slots * SLOT_BYTES, {0: MAGIC}
            ),
        )

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """Takes over the file of a process that is gone.

        Returns None while the file is owned, or where it has no room for a slot. Each slot has its
        own checksum, so damage costs the slots that it touches, even at the beginning of the file.
        """
        try:
            found = lock_abandoned(path)
        except FileNotFoundError:
            return None
        if found is None:
            return None
        descriptor, size = found
        try:
            if size > START:
                return cls(path, descriptor, mmap.mmap(descriptor, size))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def begin(self, record: bytes) -> int:
        """Keeps the record until `end`.

        Returns its slot, or NOT_BEGUN where no slot is free or the record is too long.
        """
        if not self._free or len(record) > SLOT_BYTES - HEAD.size:
            return NOT_BEGUN
        slot = self._free.pop()
        place = START + slot * SLOT_BYTES
        self._mapping[place + HEAD.size : place + HEAD.size + len(record)] = record
        HEAD.pack_into(self._mapping, place, len(record), crc32(record))
        return slot

    def end(self, slot: int) -> None:
        """Frees a slot."""
        place = START + slot * SLOT_BYTES
        self._mapping[place : place + HEAD.size] = _FREE
        self._free.append(slot)

    def unfinished(self) -> Iterator[bytes]:
        """Yields the records of calls that did not end; `damaged` counts the unreadable ones."""
        self.damaged = 0
        for slot in range(self._slots):
            place = START + slot * SLOT_BYTES
            length, checksum = HEAD.unpack_from(self._mapping, place)
            if 0 < length <= SLOT_BYTES - HEAD.size:
                record = self._mapping[place + HEAD.size : place + HEAD.size + length]
                if crc32(record) == checksum:
                    yield record
                    continue
            self.damaged += length > 0

    @property
    def is_empty(self) -> bool:
        """Whether every call has ended."""
        return len(self._free) == self._slots

    def close(self, *, delete: bool) -> None:
        """Unmaps the file and gives up its lock.

        With `delete` the file is deleted first, so that no other process adopts it.
        """
        if delete:
            self._path.unlink(missing_ok=True)
        self._mapping.close()
        os.close(self._descriptor)


def tidy(directory: Path, name: str, older_than: float) -> None:
    """Deletes drafts that a dead process left before `older_than` (seconds since the epoch)."""
    for draft in directory.glob(f"{name}-*{DRAFT_SUFFIX}"):
        try:
            if draft.stat().st_mtime < older_than:
                draft.unlink()
        except FileNotFoundError:
            continue
