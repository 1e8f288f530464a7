"""Publishes messages on NATS in the background.

A bounded queue keeps their order; when NATS stays away for long, the oldest are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass

import nats.errors
import orjson

from backends.nats.link import NatsLink
from common.periodic import start_periodic
from common.tasks import end_tasks
from common.tracing import inject
from contracts.errors import Unavailable
from contracts.events import EventLog, Published, failure_event

MAX_QUEUED = 10_000
RETRY_S = 1.0


class NatsPublisher:
    """A bounded queue in front of a connection of its own, `link`."""

    def __init__(self, url: str | None, events: EventLog, *, name: str) -> None:
        """Without a `url` (no NATS is configured) messages are dropped."""
        self.link = NatsLink(url, events, name=name) if url else None
        self._events = events
        self._queue: deque[tuple[str, bytes, dict[str, str]]] = deque(maxlen=MAX_QUEUED)
        self._wake = asyncio.Event()
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to connect and to publish; must be called on the running event loop."""
        if self.link is not None:
            self.link.start()
        failed = failure_event(self._events, None, defect="nats.publisher_defect")
        self._task = start_periodic(
            self._publish_all, RETRY_S, failed, name="nats:publisher", wake=self._wake
        )

    def publish(self, subject: str, payload: bytes) -> None:
        """Queues one message, with the current trace. Never blocks and never raises."""
        if self.link is None:
            return
        headers: dict[str, str] = {}
        inject(headers)
        if len(self._queue) == MAX_QUEUED:
            self._dropped += 1
        self._queue.append((subject, payload, headers))
        self._wake.set()

    async def close(self) -> None:
        """Publishes the queue if there is a connection, and closes it."""
        if self._task is not None:
            await end_tasks([self._task])
        with contextlib.suppress(Unavailable):
            await self._publish_all()
        if self.link is not None:
            await self.link.close()

    async def _publish_all(self) -> None:
        while self.link is not None and self._queue:
            subject, payload, headers = self._queue[0]
            try:
                await self.link.client().publish(subject, payload, headers=headers or None)
            except nats.errors.Error as error:
                raise Unavailable("NATS takes no messages now") from error
            self._queue.popleft()
        if self._dropped:
            self._events.emit("nats.dropped", count=self._dropped)
            self._dropped = 0


@dataclass(frozen=True)
class NatsEvents:
    """Implements Publisher: one message per event, on its subject."""

    publisher: NatsPublisher

    def publish(self, event: Published) -> None:
        """Queues one event. Never blocks and never raises."""
        self.publisher.publish(event.subject, orjson.dumps(event.message()))
