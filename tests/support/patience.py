"""Measures how long something takes without what the machine's other work adds, so that a bound in a test means the code's own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

TICK_S = 0.01


class Stopwatch:
    """Seconds since its start, less those by which this process's event loop was late meanwhile."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._late = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began - self._late

    async def watch(self) -> None:
        """Sleeps over and over; what each sleep takes beyond its time, a busy machine took."""
        while True:
            asleep = time.monotonic()
            await asyncio.sleep(TICK_S)
            self._late += max(0.0, time.monotonic() - asleep - 2 * TICK_S)


@contextlib.asynccontextmanager
async def stopwatch() -> AsyncIterator[Stopwatch]:
    """Gives a running stopwatch."""
    watch = Stopwatch()
    watching = asyncio.create_task(watch.watch())
    try:
        yield watch
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
