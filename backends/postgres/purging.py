"""Removes old rows, a bounded number per transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


async def purge_all(remove_some: Callable[[], Awaitable[int]], at_most: int) -> int:
    """Repeats `remove_some` while it removes `at_most` rows or more; returns the number removed.

    Each call is a transaction of its own, so that locks are short and other callers get connections
    in between.
    """
    removed = 0
    while (part := await remove_some()) >= at_most:
        removed += part
    return removed + part
