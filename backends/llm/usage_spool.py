"""Keeps usage records in files: of ended calls until they are written, and of running calls."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import orjson

from backends.llm.former_journal import READERS as FORMER_READERS
from backends.llm.spool_file import SUFFIX, SpoolFile, UnreadableFile
from backends.llm.spool_lines import BEGUN, ENDED, spool_line
from contracts.errors import ConfigurationError, Overloaded
from contracts.events import EventLog
from contracts.llm.usage import UsageRecord

SPOOL_NAME = "llm-usage"
FILE_BYTES = 4 * 1024 * 1024
MAX_BYTES = 512 * 1024 * 1024
END_BYTES = 4096
"""Bytes that the record of an ended call may be longer than that of its beginning: its attempts."""
BATCHES_PER_FILE = 20
"""Batches in a row from one file, before the next file has its turn."""
ADOPT_AT_ONCE = 4


class UsageSpool:
    """Implements UsageJournal: `begin` and `record` are one write each, of some microseconds.

    A call begins only if the file has reserved space for its end. When the file is full, the calls
    that are running are repeated in a new one; files are deleted once delivered. All but `open`,
    `adopt` and `close` belongs to the event loop's thread.
    """

    def __init__(
        self,
        directory: Path,
        events: EventLog,
        *,
        name: str = "",
        file_bytes: int = FILE_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`name` is written into every record as its recorder."""
        self._directory = directory
        self._events = events
        self._name = name
        self._file_bytes = file_bytes
        self._max_bytes = max_bytes
        self._files: list[SpoolFile] = []  # oldest first; lines go to the last
        self._adopted: list[SpoolFile] = []
        self._running: dict[int, bytes] = {}  # the lines of running calls
        self._reserved = 0
        self._tickets = 0
        self._refusing = False
        self.dropped = 0

    @property
    def pending(self) -> int:
        return sum(file.pending for file in (*self._files, *self._adopted))

    @property
    def size_bytes(self) -> int:
        """Size of this process's files."""
        return sum(file.size for file in self._files)

    async def open(self) -> None:
        def create() -> SpoolFile:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return SpoolFile.create(self._path(), self._file_bytes)

        try:
            self._files = [await asyncio.to_thread(create)]
        except OSError as error:
            raise ConfigurationError(
                "the journal directory under the data directory cannot be written: "
                f"{error.strerror}"
            ) from error

    def begin(self, record: UsageRecord) -> int:
        record.recorder = self._name
        self._tickets += 1
        line = spool_line(BEGUN, self._tickets, orjson.dumps(record, default=str))
        try:
            self._with_room(2 * len(line) + END_BYTES).append(line)
        except OSError as error:
            if not self._refusing:
                self._events.emit(
                    "usage.journal_cannot_grow", reason=error.strerror, queued=self.pending
                )
            self._refusing = True
            raise Overloaded("usage cannot be recorded now: retry later") from error
        self._refusing = False
        self._running[self._tickets] = line
        self._reserved += len(line) + END_BYTES
        return self._tickets

    def record(self, record: UsageRecord, ticket: int) -> None:
        record.recorder = self._name
        line = spool_line(ENDED, ticket, orjson.dumps(record, default=str))
        try:
            self._current.append(line, records=1)
        except OSError:
            # The call stays among the running ones, so that it is not missing, but `lost`.
            self.dropped += 1
            self._events.emit("usage.dropped", records=1, total=self.dropped)
        else:
            self._reserved -= len(self._running.pop(ticket)) + END_BYTES

    async def drain(self, rows: int, write: Callable[[list[bytes]], Awaitable[None]]) -> None:
        for file in (*self._files, *self._adopted):
            for _ in range(BATCHES_PER_FILE):
                if not (records := file.read(rows)):
                    break
                await write(records)
                file.deliver(len(records))
            if file.damaged:
                self._events.emit("journal.damaged", file=file.path.name, bytes=file.damaged)
                file.damaged = 0
            if not file.pending and file is not self._files[-1]:
                if file.lost:
                    self._events.emit("usage.calls_lost", calls=file.lost)
                (self._adopted if file in self._adopted else self._files).remove(file)
                await asyncio.to_thread(file.close, delete=True)

    async def adopt(self) -> None:
        # Of the version before, calls are lost only if no record of them waits in another file.
        for suffix in (SUFFIX, *FORMER_READERS):
            if not self._adopted:
                self._adopted = await asyncio.to_thread(self._adopt, suffix)

    async def close(self) -> None:
        own, adopted = self._files, self._adopted
        self._files, self._adopted = [], []
        for file in (*own, *adopted):
            # The next process accounts for calls that this one does not end.
            kept = file.pending or (self._running and file is own[-1])
            await asyncio.to_thread(file.close, delete=not kept)

    @property
    def _current(self) -> SpoolFile:
        if not self._files:
            raise OSError(errno.EBADF, "the spool is closed")
        return self._files[-1]

    def _path(self) -> Path:
        return self._directory / f"{SPOOL_NAME}-{os.getpid()}-{secrets.token_hex(6)}{SUFFIX}"

    def _with_room(self, needed: int) -> SpoolFile:
        """Returns the file for a line. Raises OSError: the disk or the spool is full."""
        current, needed = self._current, needed + self._reserved
        if current.tail + needed <= current.size:
            return current
        begun = b"".join(self._running.values())
        size = max(self._file_bytes, 2 * (len(begun) + needed))
        if self.size_bytes + size > self._max_bytes:
            raise OSError(errno.ENOSPC, "the journal has reached its bound")
        self._files.append(SpoolFile.create(self._path(), size, begun))
        current.seal()
        return self._files[-1]

    def _adopt(self, suffix: str) -> list[SpoolFile]:
        adopted: list[SpoolFile] = []
        for path in sorted(self._directory.glob(f"{SPOOL_NAME}-*{suffix}")):
            try:
                file = SpoolFile.adopt(path)  # fails for our own, which are locked
            except FileNotFoundError:
                continue
            except UnreadableFile:
                self._events.emit("journal.unreadable", file=path.name)
                with suppress(FileNotFoundError):
                    path.rename(path.with_suffix(".unreadable"))
                continue
            except OSError as error:
                self._events.emit("journal.not_adopted", file=path.name, reason=error.strerror)
                continue
            if file is not None:
                adopted.append(file)
            if len(adopted) == ADOPT_AT_ONCE:
                break
        return adopted
