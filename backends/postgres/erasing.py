"""Erases what all wings store of a microDAO, an agent or a channel, a bounded number of rows per
transaction.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from psycopg import sql

from backends.postgres.pool import PostgresAdapter
from backends.postgres.purging import PURGE_TIMEOUT_S, purge_all
from contracts.memory.administration import EraseRequest

ERASE_ROWS = 5_000

# First what waits, so that nothing new begins; a row comes before those that it refers to.
CLASSES = (
    "invocations",
    "runs",
    "batch_requests",
    "idempotent_answers",
    "tool_calls",
    "channel_events",
    "messages",
    "channel_members",
    "channels",
    "follow_ups",
    "projects",
)
ERASE = sql.SQL("SELECT {}(%(microdao_id)s, %(agent_id)s, %(channel_id)s, %(at_most)s) AS removed")


class TenantRows(PostgresAdapter):
    """Implements RowErasure by the functions `erase_<class>` of the schema."""

    async def erase(self, request: EraseRequest) -> dict[str, int]:
        values = {**request.model_dump(), "at_most": ERASE_ROWS}
        return {name: await purge_all(partial(self._some, name, values), 1) for name in CLASSES}

    async def _some(self, name: str, values: dict[str, Any]) -> int:
        statement = ERASE.format(sql.Identifier(f"erase_{name}"))
        async with self._database.transaction(timeout_s=PURGE_TIMEOUT_S) as connection:
            row = await (await connection.execute(statement, values)).fetchone()
        return int(row["removed"]) if row else 0
