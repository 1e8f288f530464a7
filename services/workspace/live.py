"""Live events of channels: one reader per channel and replica, any number of watchers.

A watcher holds a position and no queue, so a slow one costs no memory. Events after its position
come from the channel's recent events, kept once per replica, or from the store when the watcher is
further behind. The replica asks the store for the positions of the watched channels: at once when
it added events itself, every `POLL_EVERY_S` otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from uuid import UUID

from common.periodic import start_periodic
from common.tasks import end_tasks
from contracts.errors import DaarionError, Overloaded
from contracts.events import EventLog
from contracts.workspace.events import ChannelEvent, ChannelEventStore

POLL_EVERY_S = 0.2
MIN_PAUSE_S = 0.02
MAX_KEPT = 256
PAGE = 50
HEARTBEAT_S = 2.0
"""Short, because whether the watcher still may watch is asked at each event and heartbeat."""
MAX_STREAM_S = 3_600.0


class _ChannelFeed:
    """One watched channel. `events` holds the events after position `start` up to `tip`; `known` is
    the channel's newest position.
    """

    def __init__(self, microdao_id: str, channel_id: UUID, position: int) -> None:
        self.microdao_id = microdao_id
        self.channel_id = channel_id
        self.start = self.tip = self.known = position
        self.events: deque[ChannelEvent] = deque()
        self.watchers: set[asyncio.Event] = set()
        self._loading = asyncio.Lock()

    def advance(self, position: int) -> None:
        """Wakes the watchers when `position` is new."""
        if position > self.known:
            self.known = position
            for watcher in self.watchers:
                watcher.set()

    async def after(
        self, position: int, store: ChannelEventStore
    ) -> tuple[list[ChannelEvent], int]:
        """Returns the next events and the position after them."""
        if position >= self.known:
            return [], position
        async with self._loading:
            if self.tip < self.known and position >= self.start:
                await self._load(store)
        if position < self.start:  # older than the kept events
            found = await store.events(self.microdao_id, self.channel_id, position, PAGE)
            return found, found[-1].position if found else self.start
        found = [event for event in self.events if event.position > position][:PAGE]
        return found, found[-1].position if found else max(position, self.tip)

    async def _load(self, store: ChannelEventStore) -> None:
        known = self.known
        loaded = await store.events(self.microdao_id, self.channel_id, self.tip, PAGE)
        self.tip = (
            loaded[-1].position
            if len(loaded) == PAGE
            else max([known, *(event.position for event in loaded)])
        )
        self.events.extend(loaded)
        while len(self.events) > MAX_KEPT:
            self.start = self.events.popleft().position


class LiveFeeds:
    """The watched channels of this replica; at most `max_streams` watchers."""

    def __init__(self, store: ChannelEventStore, events: EventLog, *, max_streams: int) -> None:
        self._store = store
        self._events = events
        self._max = max_streams
        self._count = 0
        self._feeds: dict[UUID, _ChannelFeed] = {}
        self._poll_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = False

    def start(self) -> None:
        """Starts polling; must be called on the running event loop."""
        self._task = start_periodic(
            self._poll, POLL_EVERY_S, self._failed, name="workspace:live", wake=self._poll_now
        )

    async def close(self) -> None:
        """Stops polling and ends the open streams."""
        if self._task is not None:
            await end_tasks([self._task])
        for feed in self._feeds.values():
            for watcher in feed.watchers:
                watcher.set()

    def changed(self, channel_id: UUID) -> None:
        """This replica added events to the channel: poll at once."""
        if channel_id in self._feeds:
            self._poll_now.set()

    @contextlib.asynccontextmanager
    async def watch(
        self, microdao_id: str, channel_id: UUID, after: int | None
    ) -> AsyncIterator[AsyncIterator[ChannelEvent | None]]:
        """Yields the events after position `after` (None: from now on).

        Yields None after each `HEARTBEAT_S` without events. The stream ends after `MAX_STREAM_S`,
        so that clients reconnect to a replica that is still there.

        Raises:
            Overloaded: this replica has `max_streams` watchers.
            DatabaseUnavailable: also while iterating.
        """
        if self._count >= self._max:
            raise Overloaded(
                "this replica has as many event streams as it may take: retry shortly",
                retry_after_s=1.0,
            )
        self._count += 1
        wake = asyncio.Event()
        try:
            feed = await self._join(microdao_id, channel_id, wake)
            try:
                start = feed.known if after is None else min(after, feed.known)
                yield self._iterate(feed, start, wake)
            finally:
                feed.watchers.discard(wake)
                if not feed.watchers:
                    del self._feeds[channel_id]
        finally:
            self._count -= 1

    async def _join(self, microdao_id: str, channel_id: UUID, wake: asyncio.Event) -> _ChannelFeed:
        position = (await self._store.positions([channel_id])).get(channel_id, 0)
        feed = self._feeds.get(channel_id)
        if feed is None:
            feed = self._feeds[channel_id] = _ChannelFeed(microdao_id, channel_id, position)
        feed.advance(position)
        feed.watchers.add(wake)
        return feed

    async def _iterate(
        self, feed: _ChannelFeed, position: int, wake: asyncio.Event
    ) -> AsyncIterator[ChannelEvent | None]:
        ends = time.monotonic() + MAX_STREAM_S
        while time.monotonic() < ends:
            wake.clear()
            found, position = await feed.after(position, self._store)
            for event in found:
                yield event
            if found or position < feed.known:
                continue
            if self._task is None or self._task.done():
                return
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await wake.wait()
            except TimeoutError:
                yield None

    async def _poll(self) -> None:
        if not self._feeds:
            return
        for channel_id, position in (await self._store.positions(list(self._feeds))).items():
            if channel_id in self._feeds:
                self._feeds[channel_id].advance(position)
        self._away = False
        await asyncio.sleep(MIN_PAUSE_S)  # what this replica adds meanwhile is one more poll

    def _failed(self, error: Exception, _seconds: float) -> None:
        if not isinstance(error, DaarionError):
            self._events.emit("workspace.live_defect", error=type(error).__name__, exc_info=error)
        elif not self._away:
            self._away = True
            self._events.emit("workspace.live_failed", error=error.type)
