"""Concurrent identical calls share one run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from contracts.errors import DeadlineExceeded, LimitsUnavailable, Overloaded, RateLimited

T = TypeVar("T")

MAX_TURNS = 3
"""How many runs a caller waits for that fail because of their leaders' limits or deadlines."""

_OF_THE_LEADER = (RateLimited, LimitsUnavailable, DeadlineExceeded, Overloaded)
"""Failures caused by the leader's limits or deadline, not by the call itself."""


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class SharedResult(NamedTuple, Generic[T]):
    """The result of a run; `led`: this caller's call made it."""

    result: T
    led: bool


class SingleFlight(Generic[T]):
    """Runs one call per key at a time.

    The first caller leads: the call runs with its limits and deadline, in a task that no caller
    owns. When the leader leaves, the others keep waiting for the same run; when all have left, it
    is cancelled. When the run fails because of the leader's limits or deadline, the next caller
    leads.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: bytes, call: Callable[[], Awaitable[T]]) -> SharedResult[T]:
        """Returns the result of the one run for `key`.

        Raises what the run raises.
        """
        for turn in range(MAX_TURNS):
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._begin(key, call)
            try:
                return SharedResult(await self._result(key, flight), leads)
            except _OF_THE_LEADER:
                if leads or turn == MAX_TURNS - 1:
                    raise
        raise AssertionError  # the last turn returns or raises

    def _begin(self, key: bytes, call: Callable[[], Awaitable[T]]) -> _Flight[T]:
        flight = _Flight(asyncio.create_task(_run(call)))
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._land(key, flight))
        return flight

    async def _result(self, key: bytes, flight: _Flight[T]) -> T:
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._land(key, flight)
                flight.task.cancel()
                await asyncio.wait({flight.task})

    def _land(self, key: bytes, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # read here, because every caller may have left


async def _run(call: Callable[[], Awaitable[T]]) -> T:
    return await call()
