"""Bounds how many calls of one tool run at once in this replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from contracts.deadline import Deadline
from contracts.errors import Overloaded
from contracts.tools import ToolDefinition

MAX_WAITING = 256


@dataclass
class _Slots:
    limit: int
    semaphore: asyncio.Semaphore = field(init=False)
    users: int = 0

    def __post_init__(self) -> None:
        self.semaphore = asyncio.Semaphore(self.limit)


class ConcurrencySlots:
    """One semaphore per tool that sets `max_concurrency`; a changed limit holds for the calls that come after it."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, int], _Slots] = {}

    @asynccontextmanager
    async def slot(self, tool: ToolDefinition, deadline: Deadline) -> AsyncIterator[None]:
        """Holds one slot of the tool. Raises Overloaded when none gets free in time, or too many wait already."""
        if tool.max_concurrency is None:
            yield
            return
        key = (tool.id, tool.max_concurrency)
        slots = self._slots.setdefault(key, _Slots(tool.max_concurrency))
        if slots.users >= slots.limit + MAX_WAITING:
            raise Overloaded(f"`{tool.id}` runs as many calls as it may, and {MAX_WAITING} wait: retry shortly", retry_after_s=1)
        slots.users += 1
        try:
            await _acquire(slots.semaphore, tool, deadline)
            try:
                yield
            finally:
                slots.semaphore.release()
        finally:
            slots.users -= 1
            if not slots.users:
                self._slots.pop(key, None)


async def _acquire(semaphore: asyncio.Semaphore, tool: ToolDefinition, deadline: Deadline) -> None:
    try:
        async with asyncio.timeout(deadline.remaining()):
            await semaphore.acquire()
    except TimeoutError:
        raise Overloaded(f"`{tool.id}` runs as many calls as it may: retry shortly", retry_after_s=1) from None
