"""The retries of the agents' services: of their database and of the messaging service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from contracts.deadline import Deadline
from contracts.errors import DaarionError, DatabaseUnavailable, Overloaded

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0

T = TypeVar("T")


async def retry_for(
    attempt: Callable[[], Awaitable[T]],
    seconds: float,
    on: tuple[type[DaarionError], ...] = (DatabaseUnavailable, Overloaded),
    *,
    unless: tuple[type[DaarionError], ...] = (),
) -> T:
    """Retries `attempt` for up to `seconds` while it raises one of `on`, but none of `unless`.

    Raises the last error.
    """
    until = Deadline.after(seconds)
    pause = FIRST_PAUSE_S
    while True:
        try:
            return await attempt()
        except on as error:
            if isinstance(error, unless) or until.remaining() < pause:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)
