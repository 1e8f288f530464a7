"""Writes the usage ledger: records go into a journal in mapped files, and then into PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from backends.journal.journal import DRAFT_AGE_S, MAX_BYTES, SEGMENT_BYTES, Journal
from backends.llm.running_calls import SUFFIX as RUNNING_SUFFIX
from backends.llm.running_calls import RunningCalls
from backends.llm.running_calls import tidy as tidy_running
from backends.llm.usage_ledger import UsageLedger
from backends.postgres.pool import Database
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.llm.usage import NOT_BEGUN, OUTCOME_LOST, CallAnnouncer, UsageRecord

JOURNAL_NAME = "llm-usage"
BATCH_ROWS = 200
BATCHES_PER_TURN = 20


@dataclass(frozen=True)
class WriterOptions:
    """Bounds and rhythm (seconds) of a writer."""

    segment_bytes: int = SEGMENT_BYTES
    max_bytes: int = MAX_BYTES
    flush_interval_s: float = 0.5
    max_backoff_s: float = 2.0
    upkeep_interval_s: float = 0.1
    adopt_interval_s: float = 15.0


@dataclass(frozen=True)
class WriterStatistics:
    """What became of the records.

    `queued` wait in journals, adopted ones included. `dropped` found the journal full, `rejected`
    were refused by the database for what they hold, `damaged_bytes` of journals could not be read;
    all three are logged. `failing_for_s` is None while rows can be written.
    """

    queued: int
    written: int
    dropped: int
    rejected: int
    damaged_bytes: int
    journal_bytes: int
    failing_for_s: float | None


class UsageWriter:
    """Takes usage records at once and writes them in the background, each exactly once.

    A record that `record` kept survives the death of this process and of PostgreSQL: the row's id
    makes repeating a batch harmless, and another process adopts the journals of a dead one. While
    PostgreSQL is away the journal is the queue.
    """

    def __init__(
        self,
        database: Database,
        directory: Path,
        *,
        events: EventLog,
        options: WriterOptions | None = None,
        name: str = "",
        announcer: CallAnnouncer | None = None,
    ) -> None:
        """`name` is written into every row as its recorder."""
        self._ledger = UsageLedger(database, events)
        self._events = events
        self._name = name
        self._announcer = announcer
        self._options = options or WriterOptions()
        self._journal = Journal(
            directory,
            JOURNAL_NAME,
            events,
            segment_bytes=self._options.segment_bytes,
            max_bytes=self._options.max_bytes,
        )
        self._directory = directory
        self._running: RunningCalls | None = None
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._reported_drops = 0
        self._failing_since: float | None = None

    async def start(self) -> None:
        """Opens the journal and starts writing. Does not wait for PostgreSQL.

        Raises:
            ConfigurationError: the journal's directory cannot be written.
        """
        await asyncio.to_thread(self._journal.open)
        try:
            self._running = await asyncio.to_thread(
                RunningCalls.create, self._directory, JOURNAL_NAME
            )
        except OSError as error:
            # The ledger works without it; only calls of a process that dies would be missing.
            self._events.emit("usage.running_not_kept", reason=error.strerror)
        rhythm = self._options
        self._tasks = [
            asyncio.create_task(
                self._forever(self._drain, rhythm.flush_interval_s, rhythm.flush_interval_s),
                name="usage-drain",
            ),
            asyncio.create_task(
                self._forever(self._keep_spare, rhythm.upkeep_interval_s, rhythm.upkeep_interval_s),
                name="usage-spare",
            ),
            asyncio.create_task(
                self._forever(self._adopt, rhythm.adopt_interval_s, rhythm.upkeep_interval_s),
                name="usage-adopt",
            ),
        ]

    def begin(self, record: UsageRecord) -> int:
        """Keeps the record for the case that this process dies: a copy in memory, like `record`."""
        if self._running is None:
            return NOT_BEGUN
        record.recorder = self._name
        return self._running.begin(_line(record))

    def record(self, record: UsageRecord, ticket: int = NOT_BEGUN) -> None:
        """Keeps the record: a copy in memory of some microseconds, no I/O.

        To be called on the event loop's thread.
        """
        record.recorder = self._name
        self._journal.append(_line(record))
        if ticket != NOT_BEGUN and self._running is not None:
            self._running.end(ticket)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is queued, for at most `timeout_s`; the rest waits in its file for the next
        process.
        """
        self._stopping.set()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*self._tasks)
                await self._drain_all()
        except TimeoutError:
            self._events.emit("usage.left_in_journal", records=self._journal.pending)
        self._report_drops()
        await asyncio.to_thread(self._journal.close)
        if self._running is not None:
            # The next process accounts for calls that this one does not end.
            running, self._running = self._running, None
            await asyncio.to_thread(running.close, delete=running.is_empty)

    def statistics(self) -> WriterStatistics:
        """Returns the counters; cheap."""
        since = self._failing_since
        return WriterStatistics(
            queued=self._journal.pending,
            written=self._ledger.written,
            dropped=self._journal.dropped,
            rejected=self._ledger.rejected,
            damaged_bytes=self._journal.damaged,
            journal_bytes=self._journal.size_bytes,
            failing_for_s=None if since is None else time.monotonic() - since,
        )

    async def _forever(
        self, turn: Callable[[], Coroutine[Any, Any, None]], interval_s: float, first_s: float
    ) -> None:
        """Runs `turn` until the writer stops, first after `first_s`, then every `interval_s`.

        A failure doubles the pause up to the bound.
        """
        pause = first_s
        while not await self._stopped_within(pause):
            try:
                await turn()
                pause = interval_s
            except DaarionError as error:
                self._note_failure(error)
                pause = max(interval_s, min(pause * 2, self._options.max_backoff_s))
            except Exception as error:  # noqa: BLE001 - a defect in one turn must not end the ledger
                self._events.emit("usage.turn_failed", exc_info=error)
                pause = max(interval_s, self._options.max_backoff_s)

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _drain(self) -> None:
        """Writes what is queued now; of each segment some batches, so that no segment waits for
        another.
        """
        for segment in self._journal.segments():
            for _ in range(BATCHES_PER_TURN):
                if segment.is_empty:
                    break
                batch = segment.read(BATCH_ROWS)
                if batch.records:
                    await self._write(batch.records)
                self._journal.deliver(segment, batch)
        self._note_success()

    async def _drain_all(self) -> None:
        while any(self._journal.segments()):
            try:
                await self._drain()
            except DaarionError as error:
                self._note_failure(error)
                await asyncio.sleep(min(self._options.flush_interval_s, 0.1))

    async def _write(self, records: list[bytes]) -> None:
        written = await self._ledger.write(records)
        if self._announcer is not None and written:
            await self._announcer.announce(written)

    async def _keep_spare(self) -> None:
        """Keeps a spare segment ready and reports losses."""
        self._report_drops()
        if self._journal.needs_spare:
            await self._add_spare()

    async def _adopt(self) -> None:
        orphans = await asyncio.to_thread(self._journal.adopt_orphans)
        self._journal.take_orphans(orphans)
        await asyncio.to_thread(self._journal.tidy)
        if not orphans and not self._journal.has_adopted:
            # Only after a dead process's records: a call that it recorded is not lost.
            for path in await asyncio.to_thread(
                lambda: sorted(self._directory.glob(f"{JOURNAL_NAME}-*{RUNNING_SUFFIX}"))
            ):
                await self._account_lost(path)
            await asyncio.to_thread(
                tidy_running, self._directory, JOURNAL_NAME, time.time() - DRAFT_AGE_S
            )

    async def _account_lost(self, path: Path) -> None:
        """Records the calls that a dead process worked on, under the ids that they had there."""
        left = await asyncio.to_thread(RunningCalls.adopt, path)
        if left is None:
            return
        written = False
        try:
            records = [_lost(begun) for begun in left.left()]
            for start in range(0, len(records), BATCH_ROWS):
                await self._write(records[start : start + BATCH_ROWS])
            if records:
                self._events.emit("usage.calls_lost", calls=len(records))
            if left.damaged:
                self._events.emit("usage.calls_unreadable", file=path.name, calls=left.damaged)
            written = True
        finally:
            await asyncio.to_thread(left.close, delete=written)

    async def _add_spare(self) -> None:
        try:
            self._journal.take_spare(await asyncio.to_thread(self._journal.create_spare))
        except OSError as error:
            self._events.emit(
                "usage.journal_cannot_grow", reason=error.strerror, queued=self._journal.pending
            )

    def _report_drops(self) -> None:
        dropped = self._journal.dropped
        if dropped > self._reported_drops:
            self._events.emit(
                "usage.dropped", records=dropped - self._reported_drops, total=dropped
            )
            self._reported_drops = dropped

    def _note_failure(self, error: DaarionError) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            self._events.emit("usage.not_written", error=error.type, queued=self._journal.pending)

    def _note_success(self) -> None:
        if self._failing_since is not None:
            self._events.emit(
                "usage.written_again", after_s=round(time.monotonic() - self._failing_since, 1)
            )
            self._failing_since = None


def _line(record: UsageRecord) -> bytes:
    return orjson.dumps(record, default=str)


# What a version before kept of a call in work: these values, in this order, as a JSON array.
_FORMER = (
    "recorder", "id", "occurred_at", "request_id", "agent_id", "microdao_id", "channel_id",
    "logical_model", "provider", "physical_model", "prompt_tokens", "streamed", "credential",
)  # fmt: skip


def _lost(begun: bytes) -> bytes:
    """Returns the record of a call that a dead process had begun."""
    if not begun.startswith(b"["):
        return begun
    former = dict(zip(_FORMER, orjson.loads(begun), strict=True))
    prompt = former["prompt_tokens"]
    lost = {"outcome": OUTCOME_LOST, "latency_ms": 0.0, "total_tokens": prompt, "estimated": True}
    return orjson.dumps(former | lost)
