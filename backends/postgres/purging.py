"""How old rows are removed: a bounded number per transaction, as many transactions as it takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


async def purge_all(remove_some: Callable[[], Awaitable[int]], at_most: int) -> int:
    """Repeats `remove_some` while it removes `at_most` rows or more; returns how many went.

    Each call is a transaction of its own, so that no lock is held for long and callers get connections in between.
    """
    removed = 0
    while (part := await remove_some()) >= at_most:
        removed += part
    return removed + part
