"""Erases and counts what all wings store of a microDAO, an agent or a channel, by functions of the
schema, which see all of it. A transaction erases a bounded number of rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

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


class TenantRows(PostgresAdapter):
    """Implements RowErasure and StoredCounts."""

    async def erase(self, request: EraseRequest) -> dict[str, int]:
        selected = request.microdao_id, request.agent_id, request.channel_id, ERASE_ROWS
        return {
            name: await purge_all(partial(self._call, f"erase_{name}", *selected), 1)
            for name in CLASSES
        }

    async def stored(
        self, kind: Literal["memories", "messages"], microdao_id: str, at_most: int
    ) -> int:
        return await self._call(f"stored_{kind}", microdao_id, at_most)

    async def _call(self, function: str, *values: Any) -> int:
        statement = sql.SQL("SELECT {}({}) AS rows").format(
            sql.Identifier(function), sql.SQL(", ").join([sql.Placeholder()] * len(values))
        )
        async with self._database.transaction(timeout_s=PURGE_TIMEOUT_S) as connection:
            row = await (await connection.execute(statement, values)).fetchone()
        return int(row["rows"]) if row else 0
