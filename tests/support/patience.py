"""Measures the time that the code itself takes, without delays that a busy machine adds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

TICK_S = 0.01


class Stopwatch:
    """Seconds since its start, less the lateness of this process's event loop."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._late = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began - self._late

    async def watch(self) -> None:
        """Sleeps repeatedly; the time beyond each sleep is the lateness."""
        while True:
            asleep = time.monotonic()
            await asyncio.sleep(TICK_S)
            self._late += max(0.0, time.monotonic() - asleep - 2 * TICK_S)


@contextlib.asynccontextmanager
async def stopwatch() -> AsyncIterator[Stopwatch]:
    """Yields a running stopwatch."""
    watch = Stopwatch()
    watching = asyncio.create_task(watch.watch())
    try:
        yield watch
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
