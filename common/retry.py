"""Tries a call again until it succeeds or its time is up."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

_MAX_DOUBLINGS = 32

T = TypeVar("T")


def backoff_s(failures: int, first_s: float, longest_s: float) -> float:
    """Returns the pause after so many failures in a row: half to the whole of `first_s`, which
    doubles up to `longest_s`. The spread keeps replicas from retrying in step.
    """
    pause = min(first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS), longest_s)
    return random.uniform(pause / 2, pause)  # noqa: S311  # spreads load, protects nothing


async def retry(
    attempt: Callable[[], Awaitable[T]],
    on: Callable[[Exception], bool] = lambda _: False,
    *,
    repeat: Callable[[T], bool] = lambda _: False,
    within_s: float = math.inf,
    first_s: float = 0.1,
    longest_s: float = 2.0,
) -> T:
    """Calls `attempt` again after an error for which `on` is true and a result for which `repeat`
    is; returns the last result, or raises the last error.

    Pauses grow as in `backoff_s`; a `retry_after_s` of the error or result makes one longer, up to
    `longest_s`. No attempt begins `within_s` seconds or more after the first.
    """
    clock, failures = asyncio.get_running_loop().time, 0
    until = clock() + within_s

    def pause_s(last: T | Exception) -> float | None:
        asked_s = getattr(last, "retry_after_s", None) or 0.0
        pause = max(backoff_s(failures, first_s, longest_s), min(asked_s, longest_s))
        return pause if clock() + pause < until else None

    while True:
        failures += 1
        try:
            result = await attempt()
        except Exception as error:
            if not on(error) or (pause := pause_s(error)) is None:
                raise
        else:
            if not repeat(result) or (pause := pause_s(result)) is None:
                return result
        await asyncio.sleep(pause)
