"""The places of one replica: for requests in work, and for those whose bodies are still on their way.

A request takes a place in work when its body is there. As many bodies as there are places may be on their way, each under a
deadline; where there are more, the client that has been silent longest makes room. So clients that send nothing, or little, keep
nobody out who sends a request at once.
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
"""How long a client may be silent in the middle of its request, and how long before its pace counts."""
BYTES_PER_S = 1_024
"""The least pace of a body."""
UNREAD_S = 60.0
"""How long a client may leave a stream unread that waits for it."""
SPARED_S = 1.0
"""Who has been silent for less need not make room: the body may be in the next packet."""
SWEEP_S = 1.0
RETRY_WHEN_FULL_S = 1.0
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

Result = TypeVar("Result")


class Places:
    """At most `most` requests in work, and as many whose bodies are on their way."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.working = 0
        self.arriving = 0
        self._watched: dict[Place, float] = {}
        """Who keeps us waiting, since when; longest first. One timer for all: a timer of its own would cost each request more."""
        self._sweeper: asyncio.TimerHandle | None = None

    def admit(self, now: float) -> None:
        """Lets a further body be on its way. Raises Overloaded when too many are, and each has just sent something."""
        if self.arriving >= self.most:
            longest = next((place for place in self._watched if place.is_arriving), None)
            if longest is None or now - self._watched[longest] < SPARED_S:
                raise _full()
            self._end(longest)
        self.arriving += 1

    def begin(self) -> None:
        """Lets a further request be in work. Raises Overloaded."""
        if self.working >= self.most:
            raise _full()
        self.working += 1

    def watch(self, place: Place, now: float) -> None:
        """Ends the place's task when it is due, until `unwatch`."""
        self._watched[place] = now
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def unwatch(self, place: Place) -> None:
        """The client has done something."""
        self._watched.pop(place, None)

    def _sweep(self) -> None:
        now = monotonic()
        for place in [place for place in self._watched if place.due <= now]:
            self._end(place)
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep) if self._watched else None

    def _end(self, place: Place) -> None:
        del self._watched[place]
        place.end()


class Place:
    """One request's place: first among the bodies on their way, then in work; `receive` and `send` are its ASGI callables."""

    __slots__ = (
        "_begun",
        "_first",
        "_is_ended",
        "_is_working",
        "_places",
        "_receive",
        "_send",
        "_size",
        "_task",
        "due",
        "has_answer",
        "is_arriving",
    )

    def __init__(self, places: Places, receive: Receive, send: Send) -> None:
        self._places = places
        self._receive = receive
        self._send = send
        self._first: Message | None = None
        self._task: asyncio.Task[object] | None = None
        self._begun = self.due = 0.0
        self._size = 0
        self.is_arriving = self._is_working = self._is_ended = False
        self.has_answer = False
        """Whether the answer has begun."""

    async def open(self, method: str) -> None:
        """Returns when the request may be served: its body is there, or a part of it, which then goes on under its deadline.

        Raises:
            Overloaded: no place is free.
            RequestTimeout: the client sends nothing.
        """
        if method not in _WITH_BODY:
            self._begin()
            return
        self._begun = monotonic()
        self._places.admit(self._begun)
        self.is_arriving = True
        self._first = self._arrived(await self._watched(self._receive(), self._begun, self._begun + GRACE_S))

    async def receive(self) -> Message:
        """Returns the next part of the body; with the last one the request is in work.

        Raises:
            Overloaded: the body is there, but no place is free.
            RequestTimeout: the client sends too slowly.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if not self.is_arriving:
            return await self._receive()
        now = monotonic()
        due = min(now, self._begun + self._size / BYTES_PER_S) + GRACE_S
        return self._arrived(await self._watched(self._receive(), now, due))

    async def send(self, message: Message) -> None:
        """Sends a part of the answer. Raises ClientDisconnect when the client does not read a stream."""
        self.has_answer = self.has_answer or message["type"] == "http.response.start"
        if not message.get("more_body", False):
            await self._send(message)
            return
        now = monotonic()
        try:
            await self._watched(self._send(message), now, now + UNREAD_S)
        except RequestTimeout:
            raise ClientDisconnect from None

    def leave(self) -> None:
        """The request has ended."""
        self._places.arriving -= self.is_arriving
        self._places.working -= self._is_working

    def end(self) -> None:
        """Ends what waits for the client."""
        self._is_ended = True
        assert self._task is not None  # it is set before anybody watches
        self._task.cancel()

    def _arrived(self, message: Message) -> Message:
        self._size += len(message.get("body", b""))
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._places.arriving -= 1
            self.is_arriving = False
            self._begin()
        return message

    def _begin(self) -> None:
        self._places.begin()
        self._is_working = True

    async def _watched(self, step: Awaitable[Result], now: float, due: float) -> Result:
        self._task, self.due = asyncio.current_task(), due
        self._places.watch(self, now)
        try:
            return await step
        except asyncio.CancelledError:
            # Ours alone is told to the client: whoever else cancels wants the task to end.
            if self._is_ended and self._task is not None and not self._task.uncancel():
                raise RequestTimeout(f"the body came too slowly: at least {BYTES_PER_S} bytes a second are expected") from None
            raise
        finally:
            self._places.unwatch(self)


def _full() -> Overloaded:
    return Overloaded("this replica has as many requests as it may take: retry shortly", retry_after_s=RETRY_WHEN_FULL_S)
