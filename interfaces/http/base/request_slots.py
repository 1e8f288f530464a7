"""Slots of one replica: for running requests, and for requests whose bodies are arriving.

A request runs, and takes a slot for that, when its whole body is there. As many bodies as requests
may be arriving, each under a deadline. When all slots of arriving bodies are taken, the slowest
body is ended in favour of the new one, so slow clients do not block others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import monotonic
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Send

from contracts.errors import Overloaded, RequestTimeout

GRACE_S = 15.0
"""How long a client may pause in the middle of its body, and how long before its pace counts."""
BYTES_PER_S = 1_024
"""Minimum speed of a body."""
BODY_S = 120.0
"""How long a client may take for a whole body."""
UPLOAD_S = 3_600.0
"""The same for a route that reads a body of any size as it arrives."""
UNREAD_S = 60.0
"""How long a client may leave a stream unread."""
SPARED_S = 1.0
"""A body younger than this does not make room: a client needs a round trip."""
SWEEP_S = 1.0
RETRY_WHEN_FULL_S = 1.0
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

Result = TypeVar("Result")


class RequestSlots:
    """At most `most` running requests, and as many whose bodies are arriving."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.running = 0
        self.arriving = 0
        self.watched: set[RequestSlot] = set()
        """Slots that wait for their clients. One timer checks all of them: a timer for each
        request would cost more."""
        self._sweeper: asyncio.TimerHandle | None = None

    def take_arriving(self) -> None:
        """Takes a slot for a body that arrives; the slowest body makes room if all are taken.

        Raises Overloaded when every arriving body is younger than `SPARED_S`.
        """
        if self.arriving >= self.most:
            now = monotonic()
            slow = (
                each for each in self.watched if each.is_arriving and each.waited(now) >= SPARED_S
            )
            slowest = min(slow, key=lambda slot: slot.pace(now), default=None)
            if slowest is None:
                raise _full()
            self._cancel(slowest)
        self.arriving += 1

    def take_running(self) -> None:
        """Takes a slot for a request that runs. Raises Overloaded."""
        if self.running >= self.most:
            raise _full()
        self.running += 1

    def watch(self, slot: RequestSlot) -> None:
        """Cancels the slot's task when it is due, until it is taken out of `watched`."""
        self.watched.add(slot)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = monotonic()
        for slot in [slot for slot in self.watched if slot.due <= now]:
            self._cancel(slot)
        self._sweeper = (
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep) if self.watched else None
        )

    def _cancel(self, slot: RequestSlot) -> None:
        self.watched.remove(slot)
        slot.cancel()


class RequestSlot:
    """One request's slot: first among the arriving bodies, then running.

    `receive` and `send` are its ASGI callables. `body_s` bounds the time that the client may take
    for its body; time in which the route does not read is not counted.
    """

    __slots__ = (
        "_body_s",
        "_first",
        "_is_cancelled",
        "_is_running",
        "_receive",
        "_send",
        "_since",
        "_size",
        "_slots",
        "_task",
        "_waited",
        "due",
        "is_arriving",
        "status",
    )

    def __init__(
        self, slots: RequestSlots, receive: Receive, send: Send, body_s: float = BODY_S
    ) -> None:
        self._slots = slots
        self._receive = receive
        self._send = send
        self._body_s = body_s
        self._first: Message | None = None
        self._task: asyncio.Task[object] | None = None
        self._since = self.due = self._waited = 0.0
        self._size = 0
        self.is_arriving = self._is_running = self._is_cancelled = False
        self.status = 0
        """The status of the answer, once that has begun."""

    async def start(self, method: str) -> None:
        """Returns when the first part of the body is there; the rest stays under its deadline.

        Raises:
            Overloaded: no slot is free.
            RequestTimeout: the body did not arrive in time, or made room for another one.
        """
        if method not in WITH_BODY:
            self._run()
            return
        self._slots.take_arriving()
        self.is_arriving = True
        self._first = await self._next_part()

    async def receive(self) -> Message:
        """Returns the next part of the body; with the last one the request runs.

        Raises:
            Overloaded: the body is there, but as many requests as may be are running.
            RequestTimeout: the body did not arrive in time, or made room for another one.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await (self._next_part() if self.is_arriving else self._receive())

    def unread(self, body: bytes) -> None:
        """Lets the body, all of which was received, be received again."""
        self._first = {"type": "http.request", "body": body}

    async def send(self, message: Message) -> None:
        """Sends a part of the answer. Raises ClientDisconnect when a stream stays unread."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if not message.get("more_body", False):
            await self._send(message)
            return
        try:
            await self._with_timeout(self._send(message), UNREAD_S)
        except RequestTimeout:
            raise ClientDisconnect from None

    def waited(self, now: float) -> float:
        """Returns the seconds that the body has been waited for; valid while it still is."""
        return self._waited + now - self._since

    def pace(self, now: float) -> float:
        """Returns the body's bytes per second of waiting."""
        return self._size / self.waited(now)

    def release(self) -> None:
        """Frees the slot, when the request has ended."""
        self._slots.arriving -= self.is_arriving
        self._slots.running -= self._is_running

    def cancel(self) -> None:
        """Cancels the task that waits for the client."""
        self._is_cancelled = True
        assert self._task is not None  # it is set before the slot is watched
        self._task.cancel()

    async def _next_part(self) -> Message:
        # The total of waiting that is allowed: the time that the bytes so far pay for at
        # BYTES_PER_S, plus the grace. Speed earns no credit.
        allowed_s = min(self._waited, self._size / BYTES_PER_S) + GRACE_S
        timeout_s = min(allowed_s, self._body_s) - self._waited
        message = await self._with_timeout(self._receive(), timeout_s)
        self._waited = self.waited(monotonic())
        self._size += len(message.get("body", b""))
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._slots.arriving -= 1
            self.is_arriving = False
            self._run()
        return message

    def _run(self) -> None:
        self._slots.take_running()
        self._is_running = True

    async def _with_timeout(self, step: Awaitable[Result], timeout_s: float) -> Result:
        self._task, self._since = asyncio.current_task(), monotonic()
        self.due = self._since + timeout_s
        self._slots.watch(self)
        try:
            return await step
        except asyncio.CancelledError:
            # Only our own cancellation becomes a 408: any other is meant to end the task.
            if self._is_cancelled and self._task is not None and not self._task.uncancel():
                raise RequestTimeout(
                    f"the body came too slowly: send at least {BYTES_PER_S} bytes a second and all "
                    f"of it within {self._body_s:g} s; when too many bodies are arriving, the "
                    "slowest is ended"
                ) from None
            raise
        finally:
            self._slots.watched.discard(self)


def _full() -> Overloaded:
    return Overloaded(
        "this replica is at its limit of requests: retry shortly",
        retry_after_s=RETRY_WHEN_FULL_S,
    )
