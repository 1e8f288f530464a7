"""Writes usage records into the ledger in the background, and announces their calls.

The billing engine gets one `usage.llm` message for each call in the ledger. A call is announced
after its row is written and before the journal drops its record, so a crash in between repeats the
message instead of losing it. Calls that the publisher refuses go to the outbox and are published
later: the ledger never waits for the publisher.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from common.periodic import start_periodic
from common.tasks import end_tasks
from contracts.errors import DaarionError, Unavailable
from contracts.events import EventLog, failure_event
from contracts.llm.usage import UsageJournal, UsageLedger, UsageOutbox, UsagePublisher

BATCH_ROWS = 200
ANNOUNCE_ROWS = 500
POLL_EVERY_S = 2.0
AWAY_S = 2.0
"""Pause after a failure, because a publisher that hangs must not hold up the ledger."""
KEEP_DAYS = 7
PURGE_EVERY_S = 60.0
PURGE_ROWS = 5_000


@dataclass(frozen=True)
class WriterOptions:
    """Rhythm of a writer, in seconds."""

    flush_interval_s: float = 0.5
    max_backoff_s: float = 2.0
    adopt_interval_s: float = 15.0


class UsageWriter:
    """Drains the journal into the ledger, each record exactly once.

    A record that the journal kept survives the death of this process and of PostgreSQL: the row's
    id makes repeating a batch harmless, and another process adopts the journals of a dead one.
    While PostgreSQL is away the journal is the queue. A call is announced after its row is written
    and before the journal forgets its record.

    `failing_since` is the moment (monotonic) since which rows cannot be written; None while they
    can.
    """

    def __init__(
        self,
        journal: UsageJournal,
        ledger: UsageLedger,
        events: EventLog,
        *,
        announcer: UsageAnnouncer | None = None,
        options: WriterOptions | None = None,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._events = events
        self._announcer = announcer
        self._options = options or WriterOptions()
        self._turn = asyncio.Lock()  # held by a running turn
        self._tasks: list[asyncio.Task[None]] = []
        self.failing_since: float | None = None

    async def start(self) -> None:
        """Opens the journal and starts writing. Does not wait for PostgreSQL.

        Raises:
            ConfigurationError: the journal cannot be kept.
        """
        await self._journal.open()
        flush_s, longest_s = self._options.flush_interval_s, self._options.max_backoff_s
        self._tasks = [
            start_periodic(
                self._drain,
                flush_s,
                self._failed,
                name="usage-drain",
                retry_s=(flush_s, longest_s),
            ),
            start_periodic(
                self._adopt,
                self._options.adopt_interval_s,
                self._failed,
                name="usage-adopt",
                at_once=True,
            ),
        ]

    async def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is queued, for at most `timeout_s`, then closes the journal.

        The rest waits in its file for the next process.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async with self._turn:  # a turn that is cut off would announce its calls twice
                    await end_tasks(self._tasks)
                await self._drain_all()
        except TimeoutError:
            self._events.emit("usage.left_in_journal", records=self._journal.pending)
        await end_tasks(self._tasks)
        await self._journal.close()

    async def _drain(self) -> None:
        async with self._turn:
            await self._journal.drain(BATCH_ROWS, self._write)
        self._note_success()

    async def _adopt(self) -> None:
        async with self._turn:
            await self._journal.adopt()

    def _failed(self, error: Exception, _seconds: float = 0.0) -> None:
        if not isinstance(error, DaarionError):
            self._events.emit("usage.turn_failed", exc_info=error)
        elif self.failing_since is None:
            self.failing_since = time.monotonic()
            self._events.emit("usage.not_written", error=error.type, queued=self._journal.pending)

    async def _drain_all(self) -> None:
        while self._journal.pending:
            try:
                await self._drain()
            except DaarionError as error:
                self._failed(error)
                await asyncio.sleep(min(self._options.flush_interval_s, 0.1))

    async def _write(self, records: list[bytes]) -> None:
        written = await self._ledger.write(records)
        if self._announcer is not None and written:
            await self._announcer.announce(written)

    def _note_success(self) -> None:
        if self.failing_since is not None:
            self._events.emit(
                "usage.written_again", after_s=round(time.monotonic() - self.failing_since, 1)
            )
            self.failing_since = None


class UsageAnnouncer:
    """Publishes calls as they are written; once started, also those in the outbox."""

    def __init__(
        self,
        outbox: UsageOutbox,
        publisher: UsagePublisher,
        events: EventLog,
        *,
        poll_every_s: float = POLL_EVERY_S,
    ) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._events = events
        self._poll_every_s = poll_every_s
        self._is_away = False
        self._retry_at = 0.0
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Must be called on the running event loop."""
        # PostgreSQL's absence is an event of the writer's, NATS's of `_published`.
        failed = failure_event(self._events, None, defect="usage.announcer_failed")
        poll_s = self._poll_every_s
        self._loops = [
            start_periodic(self._work_off, poll_s, failed, name="usage-announcer"),
            start_periodic(
                self._purge,
                PURGE_EVERY_S,
                failed,
                name="usage-purge",
                at_once=True,
                retry_s=(poll_s, PURGE_EVERY_S),
            ),
        ]

    async def close(self) -> None:
        """Stops; the outbox waits for the next process."""
        await end_tasks(self._loops)

    async def announce(self, records: list[bytes]) -> None:
        """Publishes the calls, or puts them into the outbox.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: they could not be put there either.
        """
        calls = [orjson.loads(record) for record in records]
        if not await self._published(calls):
            await self._outbox.add([call["id"] for call in calls])

    async def _published(self, calls: Iterable[Mapping[str, Any]]) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            await self._publisher.publish(calls)
        except Unavailable as error:
            self._retry_at = time.monotonic() + AWAY_S
            if not self._is_away:
                self._is_away = True
                cause = type(error.__cause__ or error).__name__
                self._events.emit("usage.not_announced", error=cause)
            return False
        self._is_away = False
        return True

    async def _purge(self) -> bool:
        """Deletes calls older than `KEEP_DAYS`; returns whether there may be more."""
        expired = await self._outbox.purge(KEEP_DAYS, PURGE_ROWS)
        if expired:
            self._events.emit("usage.events_expired", calls=expired)
        return expired == PURGE_ROWS

    async def _work_off(self) -> bool:
        """Publishes a batch of the outbox; returns whether there may be more."""
        self._publisher.check()
        if time.monotonic() < self._retry_at:
            return False
        async with self._outbox.take(ANNOUNCE_ROWS) as calls:
            if calls and not await self._published(calls):
                raise Unavailable("usage messages cannot be published now")  # the calls stay
        return bool(calls)
