"""A bounded journal in memory-mapped files, for records that must survive the process.

`append` is a copy in memory, without a system call: it goes on in a spare segment when the current
one is full. The reader marks delivered records; a drained segment is reused from its beginning.
When a process dies, another one adopts its segments (`adopt_orphans`): a record is delivered at
least once, and exactly once when the receiver knows its id.

At the bound (`max_bytes`) `append` refuses records and `dropped` counts them. Damage in a file is
skipped, emitted as the event `journal.damaged`, and counted in bytes by `damaged`.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from backends.journal.segment import (
    DRAFT_SUFFIX,
    MINIMUM_BYTES,
    SUFFIX,
    RecordBatch,
    Segment,
    UnreadableSegment,
)
from contracts.errors import ConfigurationError
from contracts.events import EventLog

SEGMENT_BYTES = 4 * 1024 * 1024
MAX_BYTES = 256 * 1024 * 1024
ADOPT_AT_ONCE = 4
DRAFT_AGE_S = 60.0


class Journal:
    """The segments of one process, and the orphans that it adopted.

    `append`, `segments` and `deliver` belong to one thread and do no I/O. `open`, `create_spare`,
    `adopt_orphans`, `tidy` and `close` do I/O: call them outside the event loop, and hand the
    results of `create_spare` and `adopt_orphans` to that thread by `take_spare` and `take_orphans`.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        events: EventLog,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if not MINIMUM_BYTES <= segment_bytes <= max_bytes:
            raise ConfigurationError(
                f"a journal needs segments of at least {MINIMUM_BYTES} bytes and room for one"
            )
        self._directory = directory
        self._name = name
        self._events = events
        self._stem = f"{name}-{os.getpid()}-{secrets.token_hex(6)}"
        self._segment_bytes = segment_bytes
        self._max_segments = max_bytes // segment_bytes
        self._created = 0
        self._current: Segment | None = None
        self._spare: Segment | None = None
        self._sealed: list[Segment] = []
        self._adopted: list[Segment] = []
        self._retired: list[Segment] = []
        self.dropped = 0
        self.damaged = 0

    def open(self) -> None:
        """Creates the directory and the first segment.

        Raises:
            ConfigurationError: the directory cannot be written.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._current = self._create()
        except OSError as error:
            raise ConfigurationError(
                "the journal directory under the data directory cannot be written: "
                f"{error.strerror}"
            ) from error

    def append(self, record: bytes) -> bool:
        """Stores a record (not empty); at the bound counts it as dropped and returns False."""
        if self._current is not None and (
            self._current.append(record) or self._append_to_spare(self._current, record)
        ):
            return True
        self.dropped += 1
        return False

    def segments(self) -> Iterator[Segment]:
        """Yields segments with undelivered records: this process's, oldest first, then adopted."""
        current = [self._current] if self._current is not None else []
        for segment in [*self._sealed, *current, *self._adopted]:
            if not segment.is_empty:
                yield segment

    def deliver(self, segment: Segment, batch: RecordBatch) -> None:
        """Marks a batch of `segment` as delivered; reuses the segment once it is drained."""
        segment.deliver(batch)
        if batch.damaged:
            self.damaged += batch.damaged
            self._events.emit("journal.damaged", file=segment.path.name, bytes=batch.damaged)
        if not segment.is_empty:
            return
        if segment is self._current:
            segment.rewind()
        elif segment in self._adopted:
            self._adopted.remove(segment)
            self._retired.append(segment)
        else:
            self._sealed.remove(segment)
            self._recycle(segment)

    @property
    def needs_spare(self) -> bool:
        """Whether `create_spare` should be called soon."""
        return self._spare is None and self._current is not None and self._live < self._max_segments

    def create_spare(self) -> Segment:
        """Returns a further segment for `take_spare`. Raises OSError when the disk is full."""
        return self._create()

    def take_spare(self, segment: Segment) -> None:
        """Keeps the segment as the successor of the current one."""
        self._recycle(segment)

    def adopt_orphans(self) -> list[Segment]:
        """Locks up to `ADOPT_AT_ONCE` segments of dead processes that hold undelivered records."""
        adopted: list[Segment] = []
        for path in sorted(self._directory.glob(f"{self._name}-*{SUFFIX}")):
            segment = self._adopt(path)  # fails for our own, which are locked
            if segment is None:
                continue
            if segment.is_empty:
                segment.close(delete=True)
                continue
            adopted.append(segment)
            if len(adopted) >= ADOPT_AT_ONCE:
                break
        return adopted

    def take_orphans(self, segments: list[Segment]) -> None:
        """Adds adopted segments to those that are read."""
        self._adopted.extend(segments)

    def tidy(self) -> None:
        """Deletes drained segments' files, and drafts of dead processes."""
        while self._retired:
            self._retired.pop().close(delete=True)
        limit = time.time() - DRAFT_AGE_S
        for draft in self._directory.glob(f"{self._name}-*{DRAFT_SUFFIX}"):
            with suppress(FileNotFoundError):
                if draft.stat().st_mtime < limit:
                    draft.unlink()

    def close(self) -> None:
        """Deletes drained files and leaves the others for adoption. Accepts no more records."""
        for segment in [*self._owned(), *self._adopted, *self._retired]:
            segment.close(delete=segment.is_empty)
        self._current = self._spare = None
        self._sealed, self._adopted, self._retired = [], [], []

    @property
    def has_adopted(self) -> bool:
        """Whether records of dead processes are undelivered."""
        return bool(self._adopted)

    @property
    def pending(self) -> int:
        """The number of undelivered records."""
        return sum(segment.pending for segment in [*self._owned(), *self._adopted])

    @property
    def size_bytes(self) -> int:
        """Size of this process's files."""
        return sum(segment.size for segment in self._owned())

    @property
    def _live(self) -> int:
        return sum(1 for _ in self._owned())

    def _owned(self) -> Iterator[Segment]:
        yield from self._sealed
        yield from (segment for segment in (self._current, self._spare) if segment is not None)

    def _append_to_spare(self, full: Segment, record: bytes) -> bool:
        spare = self._spare
        if spare is None or not spare.append(record):
            return False
        self._sealed.append(full)
        self._current, self._spare = spare, None
        return True

    def _recycle(self, segment: Segment) -> None:
        if self._spare is None:
            segment.rewind()
            self._spare = segment
        else:
            self._retired.append(segment)

    def _create(self) -> Segment:
        self._created += 1
        return Segment.create(
            self._directory / f"{self._stem}-{self._created:04d}{SUFFIX}", self._segment_bytes
        )

    def _adopt(self, path: Path) -> Segment | None:
        try:
            return Segment.adopt(path)
        except FileNotFoundError:
            return None
        except UnreadableSegment:
            self._events.emit("journal.unreadable", file=path.name)
            with suppress(FileNotFoundError):
                path.rename(path.with_suffix(".unreadable"))
            return None
        except OSError as error:
            self._events.emit("journal.not_adopted", file=path.name, reason=error.strerror)
            return None
