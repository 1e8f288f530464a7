"""Bounds how many calls of one tool run at once in this replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio import CapacityLimiter

from contracts.deadline import Deadline
from contracts.errors import Overloaded
from contracts.tools.api import ToolDefinition

MAX_WAITING = 256


@dataclass
class _Slots:
    limiter: CapacityLimiter
    users: int = 0


class ConcurrencySlots:
    """The slots of every tool that sets `max_concurrency`, kept over a reload."""

    def __init__(self) -> None:
        self._slots: dict[str, _Slots] = {}

    @asynccontextmanager
    async def slot(self, tool: ToolDefinition, deadline: Deadline) -> AsyncIterator[None]:
        """Holds one slot of the tool. Raises Overloaded if none is free in time."""
        most = tool.max_concurrency
        if most is None:
            yield
            return
        slots = self._slots.setdefault(tool.id, _Slots(CapacityLimiter(most)))
        slots.limiter.total_tokens = most
        if slots.users >= most + MAX_WAITING:
            raise Overloaded(
                f"`{tool.id}` runs as many calls as it may, and {MAX_WAITING} wait: retry shortly",
                retry_after_s=1,
            )
        slots.users += 1
        try:
            turn = await _acquired(slots.limiter, tool, deadline)
            try:
                yield
            finally:
                slots.limiter.release_on_behalf_of(turn)
        finally:
            slots.users -= 1
            if not slots.users:
                self._slots.pop(tool.id, None)


async def _acquired(limiter: CapacityLimiter, tool: ToolDefinition, deadline: Deadline) -> object:
    turn = object()
    try:
        async with asyncio.timeout(deadline.remaining()):
            await limiter.acquire_on_behalf_of(turn)
    except TimeoutError:
        raise Overloaded(
            f"`{tool.id}` runs as many calls as it may: retry shortly", retry_after_s=1
        ) from None
    return turn
