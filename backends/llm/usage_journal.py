"""Keeps usage records in mapped files: of ended calls until written, and of running calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path

import orjson

from backends.journal.journal import DRAFT_AGE_S, MAX_BYTES, SEGMENT_BYTES, Journal
from backends.journal.segment import Segment
from backends.llm.running_calls import SUFFIX as RUNNING_SUFFIX
from backends.llm.running_calls import RunningCalls
from backends.llm.running_calls import tidy as tidy_running
from contracts.events import EventLog
from contracts.llm.usage import NOT_BEGUN, OUTCOME_LOST, UsageRecord

JOURNAL_NAME = "llm-usage"
BATCHES_PER_SEGMENT = 20
"""Batches in a row from one segment, before the next segment has its turn."""


class MappedUsageJournal:
    """Implements UsageJournal: `begin` and `record` are copies in memory of some microseconds.

    Belongs to the event loop's thread. Records that find the journal full are dropped, which is
    logged; so are damaged files.
    """

    def __init__(
        self,
        directory: Path,
        events: EventLog,
        *,
        name: str = "",
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`name` is written into every record as its recorder."""
        self._directory = directory
        self._events = events
        self._name = name
        self._ended = Journal(
            directory, JOURNAL_NAME, events, segment_bytes=segment_bytes, max_bytes=max_bytes
        )
        self._running: RunningCalls | None = None
        self._reported_drops = 0

    @property
    def pending(self) -> int:
        return self._ended.pending

    async def open(self) -> None:
        await asyncio.to_thread(self._ended.open)
        try:
            self._running = await asyncio.to_thread(
                RunningCalls.create, self._directory, JOURNAL_NAME
            )
        except OSError as error:
            # The ledger works without it; only calls of a process that dies would be missing.
            self._events.emit("usage.running_not_kept", reason=error.strerror)

    def begin(self, record: UsageRecord) -> int:
        if self._running is None:
            return NOT_BEGUN
        record.recorder = self._name
        return self._running.begin(orjson.dumps(record, default=str))

    def record(self, record: UsageRecord, ticket: int = NOT_BEGUN) -> None:
        record.recorder = self._name
        self._ended.append(orjson.dumps(record, default=str))
        if ticket != NOT_BEGUN and self._running is not None:
            self._running.end(ticket)

    def batches(self, rows: int) -> Iterator[AbstractContextManager[list[bytes]]]:
        for segment in self._ended.segments():
            for _ in range(BATCHES_PER_SEGMENT):
                if segment.is_empty:
                    break
                yield self._batch(segment, rows)

    @contextmanager
    def _batch(self, segment: Segment, rows: int) -> Iterator[list[bytes]]:
        batch = segment.read(rows)
        yield batch.records
        self._ended.deliver(segment, batch)

    async def add_spare(self) -> None:
        self._report_drops()
        if not self._ended.needs_spare:
            return
        try:
            self._ended.take_spare(await asyncio.to_thread(self._ended.create_spare))
        except OSError as error:
            self._events.emit(
                "usage.journal_cannot_grow", reason=error.strerror, queued=self.pending
            )

    async def adopt(self) -> bool:
        orphans = await asyncio.to_thread(self._ended.adopt_orphans)
        self._ended.take_orphans(orphans)
        await asyncio.to_thread(self._ended.tidy)
        await asyncio.to_thread(
            tidy_running, self._directory, JOURNAL_NAME, time.time() - DRAFT_AGE_S
        )
        return bool(orphans) or self._ended.has_adopted

    async def lost_calls(self) -> Sequence[AbstractAsyncContextManager[list[bytes]]]:
        paths = await asyncio.to_thread(
            lambda: sorted(self._directory.glob(f"{JOURNAL_NAME}-*{RUNNING_SUFFIX}"))
        )
        return [self._lost_calls(path) for path in paths]

    @asynccontextmanager
    async def _lost_calls(self, path: Path) -> AsyncIterator[list[bytes]]:
        abandoned = await asyncio.to_thread(RunningCalls.adopt, path)
        if abandoned is None:
            yield []
            return
        written = False
        try:
            calls = [_lost_record(begun) for begun in abandoned.unfinished()]
            yield calls
            if calls:
                self._events.emit("usage.calls_lost", calls=len(calls))
            if abandoned.damaged:
                self._events.emit("usage.calls_unreadable", file=path.name, calls=abandoned.damaged)
            written = True
        finally:
            await asyncio.to_thread(abandoned.close, delete=written)

    async def close(self) -> None:
        self._report_drops()
        await asyncio.to_thread(self._ended.close)
        if self._running is not None:
            # The next process accounts for calls that this one does not end.
            running, self._running = self._running, None
            await asyncio.to_thread(running.close, delete=running.is_empty)

    def _report_drops(self) -> None:
        dropped = self._ended.dropped
        if dropped > self._reported_drops:
            self._events.emit(
                "usage.dropped", records=dropped - self._reported_drops, total=dropped
            )
            self._reported_drops = dropped


# Earlier versions kept a running call as a JSON array of these values, in this order.
_FORMER = (
    "recorder", "id", "occurred_at", "request_id", "agent_id", "microdao_id", "channel_id",
    "logical_model", "provider", "physical_model", "prompt_tokens", "streamed", "credential",
)  # fmt: skip


def _lost_record(begun: bytes) -> bytes:
    """Returns the record of a call that a dead process had begun, with the call's id."""
    if not begun.startswith(b"["):
        return begun
    former = dict(zip(_FORMER, orjson.loads(begun), strict=True))
    prompt = former["prompt_tokens"]
    lost = {"outcome": OUTCOME_LOST, "latency_ms": 0.0, "total_tokens": prompt, "estimated": True}
    return orjson.dumps(former | lost)
