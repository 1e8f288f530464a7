"""Publishes messages on NATS in the background.

A bounded queue keeps their order; when NATS stays away for long, the oldest are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

import nats.errors

from backends.nats.link import NatsLink
from contracts.errors import Unavailable
from contracts.events import EventLog

MAX_QUEUED = 10_000
RETRY_S = 1.0


class NatsPublisher:
    """A bounded queue in front of one connection."""

    def __init__(self, link: NatsLink | None, events: EventLog) -> None:
        """Without a `link` (no NATS is configured) messages are dropped."""
        self._link = link
        self._events = events
        self._queue: deque[tuple[str, bytes]] = deque(maxlen=MAX_QUEUED)
        self._wake = asyncio.Event()
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts publishing; must be called on the running event loop."""
        self._task = asyncio.create_task(self._run(), name="nats:publisher")

    def publish(self, subject: str, payload: bytes) -> None:
        """Queues one message. Never blocks and never raises."""
        if self._link is None:
            return
        if len(self._queue) == MAX_QUEUED:
            self._dropped += 1
        self._queue.append((subject, payload))
        self._wake.set()

    async def close(self) -> None:
        """Publishes the queue if there is a connection, and stops."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with contextlib.suppress(Unavailable, nats.errors.Error):
            await self._publish_all()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._publish_all()
            except (Unavailable, nats.errors.Error):
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def _publish_all(self) -> None:
        if self._link is None:
            return
        client = self._link.client()
        while self._queue:
            subject, payload = self._queue[0]
            await client.publish(subject, payload)
            self._queue.popleft()
        if self._dropped:
            self._events.emit("nats.dropped", count=self._dropped)
            self._dropped = 0
