"""Announces calls to the billing engine: one `usage.llm` message for each call in the ledger.

A call is announced after its row is written and before the journal drops its record, so a crash in
between repeats the message instead of losing it. Calls that the publisher refuses go to the outbox
and are published later: the ledger never waits for the publisher.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from common.periodic import start_periodic
from common.tasks import end_tasks
from contracts.errors import Unavailable
from contracts.events import EventLog, failure_event
from contracts.llm.usage import UsageOutbox, UsagePublisher

BATCH = 500
POLL_EVERY_S = 2.0
AWAY_S = 2.0
"""Pause after a failure, because a publisher that hangs must not hold up the ledger."""
KEEP_DAYS = 7
PURGE_EVERY_S = 60.0
PURGE_ROWS = 5_000


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
        async with self._outbox.take(BATCH) as calls:
            if calls and not await self._published(calls):
                raise Unavailable("usage messages cannot be published now")  # the calls stay
        return bool(calls)
