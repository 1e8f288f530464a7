"""One file of the usage spool: lines that its process appends, each by a single write.

What `write` has taken is in the page cache, so it survives a `kill -9` (not a power cut: nothing is
flushed to the disk). The file's space is reserved when it is created. The process that holds its
lock owns it.
"""

from __future__ import annotations

import errno
import os
from itertools import islice
from pathlib import Path
from typing import Self

from backends.llm import former_journal
from backends.llm.spool_lines import DELIVERED, SEALED, SpoolLines, read_lines, spool_line
from common.file_locks import create_locked, lock_abandoned

SUFFIX = ".spool"
READ_BYTES = 256 * 1024
# The first two lines are written anew in their places: a free one or SEALED, and DELIVERED.
HEAD_LINE = len(spool_line(DELIVERED, 0))


class UnreadableFile(Exception):
    """The file holds nothing of a spool."""


class SpoolFile:
    """A file with undelivered records. Not thread-safe.

    `tail` is the offset of the next line, `size` the reserved bytes, `pending` the number of
    undelivered records. An adopted file has `lost` records of calls that did not end, behind the
    others. `damaged` counts the unreadable bytes that were met.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self.tail = self._read_to = 2 * HEAD_LINE
        self.pending = self.lost = self.damaged = 0
        self._descriptor = descriptor
        self._found = SpoolLines()

    @classmethod
    def create(cls, path: Path, size: int, begun: bytes = b"") -> Self:
        """Creates a locked file of `size` bytes with the lines of running calls.

        Raises:
            OSError: the directory is not writable or the disk is full.
        """
        file = cls(path, create_locked(path), size)
        try:
            os.posix_fallocate(file._descriptor, 0, size)
            os.pwrite(file._descriptor, spool_line(DELIVERED, 0) * 2, 0)
            file.append(begun)
        except BaseException:
            file.close(delete=True)
            raise
        return file

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """Takes over the file of a dead process; returns None while it is owned.

        Raises:
            UnreadableFile: it holds something else.
            OSError: it cannot be opened or read.
        """
        descriptor = lock_abandoned(path)
        if descriptor is None:
            return None
        file = cls(path, descriptor, os.fstat(descriptor).st_size)
        try:
            data = os.pread(descriptor, file.size, 0)
            found = file._found = _READERS[path.suffix](data)
            if not found.readable and data.rstrip(b"\0"):
                raise UnreadableFile
        except BaseException:
            file.close(delete=False)
            raise
        found.ended.extend((file.size, record) for record in found.running.values())
        file.pending, file.lost = len(found.ended), len(found.running)
        file.damaged = found.damaged
        return file

    def append(self, line: bytes, *, records: int = 0) -> None:
        """Appends lines, `records` of which are of ended calls. Raises OSError: nothing is kept."""
        if os.pwrite(self._descriptor, line, self.tail) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.tail += len(line)
        self.pending += records

    def read(self, rows: int) -> list[bytes]:
        """Returns up to `rows` undelivered records in order; does not mark them."""
        while not self._found.ended and self._read_to < self.tail:
            self._read_on()
        return [record for _, record in islice(self._found.ended, rows)]

    def deliver(self, count: int) -> None:
        """Marks the first `count` records as delivered."""
        delivered = [self._found.ended.popleft() for _ in range(count)]
        self.pending -= count
        if self.path.suffix == SUFFIX:  # files of the version before are only read
            os.pwrite(self._descriptor, spool_line(DELIVERED, delivered[-1][0]), HEAD_LINE)

    def seal(self) -> None:
        """Notes that the running calls have been repeated in another file."""
        os.pwrite(self._descriptor, spool_line(SEALED, 0), 0)

    def close(self, *, delete: bool) -> None:
        """Unlocks the file. It is deleted first, so that nobody adopts it."""
        if delete:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _read_on(self) -> None:
        end = min(self._read_to + READ_BYTES, self.tail)
        data = os.pread(self._descriptor, end - self._read_to, self._read_to)
        whole = data.rfind(b"\n") + 1
        self._found = read_lines(data[:whole], self._read_to)
        self.damaged += self._found.damaged
        self._read_to = self._read_to + whole if whole else end
        if self._read_to == self.tail:
            self.pending = len(self._found.ended)  # less where a record was damaged


_READERS = {SUFFIX: read_lines, **former_journal.READERS}
