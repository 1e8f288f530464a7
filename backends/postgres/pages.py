"""Pages of rows, newest first. A cursor is time and id of the last row, bound to one query."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from psycopg.rows import DictRow

from backends.postgres.pool import Database
from contracts.errors import InvalidRequest
from contracts.values import storable


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


def write_cursor(at: datetime, row_id: str, query: Mapping[str, Any]) -> str:
    """Returns the cursor of the page that ends with this row."""
    return base64.urlsafe_b64encode(orjson.dumps([_digest(query), at, row_id])).decode()


def read_cursor(cursor: str, query: Mapping[str, Any]) -> tuple[datetime, str]:
    """Returns time and id of the last row seen.

    Raises:
        InvalidRequest: the cursor is malformed, or belongs to another query.
    """
    try:
        digest, at, row_id = orjson.loads(base64.urlsafe_b64decode(cursor))
        found = datetime.fromisoformat(at), storable(row_id)
    except (ValueError, TypeError) as error:  # includes what base64 and orjson raise
        raise InvalidRequest("cursor is not one that this query gave") from error
    if digest != _digest(query) or found[0].tzinfo is None:
        raise InvalidRequest("cursor belongs to another query: repeat it with the same filters")
    return found


def _digest(query: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(query, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
