"""Work that repeats: at an interval, sooner when there is work, later after failures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from common.retry import backoff_s
from common.tasks import end_tasks


def start_periodic(
    once: Callable[[], Awaitable[bool | None]],
    every_s: float | Callable[[], float],
    failed: Callable[[Exception, float], None],
    *,
    name: str,
    at_once: bool = False,
    wake: asyncio.Event | None = None,
    retry_s: tuple[float, float] | None = None,
) -> asyncio.Task[None]:
    """Starts a task that runs `once` every `every_s` seconds; `end_tasks` ends it.

    The times do not drift, and those that a long run misses are left out. A run that returns True
    has left work: the next one follows at once. Setting `wake` ends a pause, except after a
    failure. A failure does not end the task: `failed` gets it, with the seconds until the next run.
    With `retry_s` these grow from its first value to its second (`backoff_s`); else they are the
    rest of the interval.

    `every_s` may be a function, asked before each pause. `at_once`: the first run has no pause.
    """
    return asyncio.create_task(
        _repeat(once, every_s, failed, at_once=at_once, wake=wake, retry_s=retry_s), name=name
    )


@contextlib.asynccontextmanager
async def repeating(
    once: Callable[[], Awaitable[None]],
    every_s: float,
    failed: Callable[[Exception, float], None],
) -> AsyncIterator[None]:
    """Runs `once` every `every_s` until the block is left."""
    task = start_periodic(once, every_s, failed, name="repeating")
    try:
        yield
    finally:
        await end_tasks([task])


async def _repeat(
    once: Callable[[], Awaitable[bool | None]],
    every_s: float | Callable[[], float],
    failed: Callable[[Exception, float], None],
    *,
    at_once: bool,
    wake: asyncio.Event | None,
    retry_s: tuple[float, float] | None,
) -> None:
    clock, failures = asyncio.get_running_loop().time, 0

    def next_due() -> float:
        """The first time after now that is a whole number of intervals after `due`."""
        seconds = every_s() if callable(every_s) else every_s
        # A timer may fire a little early.
        late_s = clock() - due if was_woken else max(0.0, clock() - due)
        return due if late_s < 0 else due + (late_s // seconds + 1) * seconds

    due, was_woken = clock(), False
    if not at_once:
        due = next_due()
    while True:
        was_woken = await _pause(due - clock(), wake if failures == 0 else None)
        try:
            has_more = await once()
        except Exception as error:  # noqa: BLE001  # only its cancellation ends the task
            failures += 1
            due = clock() + backoff_s(failures, *retry_s) if retry_s else next_due()
            failed(error, round(due - clock(), 2))
        else:
            failures = 0
            due = clock() if has_more else next_due()


async def _pause(seconds: float, wake: asyncio.Event | None) -> bool:
    """Returns whether `wake` ended the pause. Lets other tasks run, even for no seconds at all."""
    if wake is None or seconds <= 0:
        await asyncio.sleep(max(0.0, seconds))
        return False
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return False
    finally:
        wake.clear()
    return True
