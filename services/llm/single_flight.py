"""Concurrent identical calls share one run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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

    async def run(self, key: bytes, call: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """Returns the result of the one run for `key`, and whether this caller led it.

        Raises what the run raises.
        """
        turn = 0
        while True:
            turn += 1
            flight, leads = self._flights.get(key), False
            if flight is None or flight.task.done():
                flight, leads = _Flight(asyncio.create_task(call())), True
                self._flights[key] = flight
            flight.waiting += 1
            try:
                return await asyncio.shield(flight.task), leads
            except _OF_THE_LEADER:
                if leads or turn == MAX_TURNS:
                    raise
            finally:
                flight.waiting -= 1
                if not flight.waiting:
                    await self._end(key, flight)

    async def _end(self, key: bytes, flight: _Flight[T]) -> None:
        """Forgets a run that nobody waits for; one that is not done is cancelled."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.done():  # a caller whose run has failed leads the next one at once
            flight.task.cancel()
            await asyncio.gather(flight.task, return_exceptions=True)
        elif not flight.task.cancelled():
            flight.task.exception()  # read here, because every caller may have left just now
