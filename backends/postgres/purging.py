"""Removes old rows, a bounded number per transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, LiteralString

from backends.postgres.pool import Database

PURGE_ROWS = 1_000
PURGE_TIMEOUT_S = 15.0


async def purge(database: Database, statement: LiteralString, **values: Any) -> int:
    """Repeats `statement` while something is left to remove; returns the number of rows removed.

    `statement` calls a function of the schema, which sees every microDAO, removes `at_most` rows
    and returns their number as `removed`. Nothing is removed where a value is None: without an age
    rows are kept for ever.
    """
    if None in values.values():
        return 0

    async def some() -> int:
        async with database.transaction(timeout_s=PURGE_TIMEOUT_S) as connection:
            row = await (
                await connection.execute(statement, {**values, "at_most": PURGE_ROWS})
            ).fetchone()
        return int(row["removed"]) if row else 0

    return await purge_all(some, PURGE_ROWS)


async def purge_all(remove_some: Callable[[], Awaitable[int]], at_most: int) -> int:
    """Repeats `remove_some` while it removes `at_most` rows or more; returns the number removed.

    Each call is a transaction of its own, so that locks are short and other callers get connections
    in between.
    """
    removed = 0
    while (part := await remove_some()) >= at_most:
        removed += part
    return removed + part
