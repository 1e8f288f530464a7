"""Pages of rows, newest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.rows import DictRow

from backends.postgres.cursors import read_cursor, write_cursor
from backends.postgres.pool import Database


async def read_page(
    database: Database,
    kind: str,
    statement: str,
    filters: Mapping[str, Any],
    *,
    limit: int,
    cursor: str | None,
) -> tuple[list[DictRow], str | None]:
    """Returns the rows of one page and the cursor of the next one.

    `statement` takes `filters` (`microdao_id` among them; None stands for any value), `after_time`
    and `after_id` (None on the first page), and `rows`. A cursor belongs to one `kind` of rows and
    one set of filters. Raises InvalidRequest for any other cursor.
    """
    identity = {"of": kind} | {name: value for name, value in filters.items() if value is not None}
    after_time, after_id = read_cursor(cursor, identity) if cursor is not None else (None, None)
    values = {**filters, "after_time": after_time, "after_id": after_id, "rows": limit + 1}
    async with database.transaction(microdao_id=filters["microdao_id"]) as connection:
        rows = await (await connection.execute(statement, values)).fetchall()
    shown = rows[:limit]
    if len(rows) <= limit:
        return shown, None
    return shown, write_cursor(shown[-1]["created_at"], str(shown[-1]["id"]), identity)
