"""Writes usage records into the ledger in the background, and has their calls announced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.llm.usage import UsageJournal, UsageLedger
from services.llm.usage_announcer import UsageAnnouncer

BATCH_ROWS = 200


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
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.failing_since: float | None = None

    async def start(self) -> None:
        """Opens the journal and starts writing. Does not wait for PostgreSQL.

        Raises:
            ConfigurationError: the journal cannot be kept.
        """
        await self._journal.open()
        flush_s, adopt_s = self._options.flush_interval_s, self._options.adopt_interval_s
        self._tasks = [
            asyncio.create_task(self._forever(self._drain, flush_s, flush_s), name="usage-drain"),
            asyncio.create_task(
                self._forever(self._journal.adopt, adopt_s, flush_s), name="usage-adopt"
            ),
        ]

    async def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is queued, for at most `timeout_s`, then closes the journal.

        The rest waits in its file for the next process.
        """
        self._stopping.set()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*self._tasks)
                await self._drain_all()
        except TimeoutError:
            self._events.emit("usage.left_in_journal", records=self._journal.pending)
        await self._journal.close()

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
            except Exception as error:  # noqa: BLE001  # a defect in one turn must not end the loop
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
        await self._journal.drain(BATCH_ROWS, self._write)
        self._note_success()

    async def _drain_all(self) -> None:
        while self._journal.pending:
            try:
                await self._drain()
            except DaarionError as error:
                self._note_failure(error)
                await asyncio.sleep(min(self._options.flush_interval_s, 0.1))

    async def _write(self, records: list[bytes]) -> None:
        written = await self._ledger.write(records)
        if self._announcer is not None and written:
            await self._announcer.announce(written)

    def _note_failure(self, error: DaarionError) -> None:
        if self.failing_since is None:
            self.failing_since = time.monotonic()
            self._events.emit("usage.not_written", error=error.type, queued=self._journal.pending)

    def _note_success(self) -> None:
        if self.failing_since is not None:
            self._events.emit(
                "usage.written_again", after_s=round(time.monotonic() - self.failing_since, 1)
            )
            self.failing_since = None
