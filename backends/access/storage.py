"""Counts what a microDAO stores."""

from __future__ import annotations

from typing import Literal

from psycopg import sql

from backends.postgres.pool import PostgresAdapter

COUNT_TIMEOUT_S = 15.0
STORED = sql.SQL("SELECT {}(%(microdao_id)s, %(at_most)s) AS stored")


class PostgresStoredCounts(PostgresAdapter):
    """Implements StoredCounts by functions of the schema, which see all agents and channels."""

    async def stored(
        self, kind: Literal["memories", "messages"], microdao_id: str, at_most: int
    ) -> int:
        statement = STORED.format(sql.Identifier(f"stored_{kind}"))
        values = {"microdao_id": microdao_id, "at_most": at_most}
        async with self._database.transaction(timeout_s=COUNT_TIMEOUT_S) as connection:
            row = await (await connection.execute(statement, values)).fetchone()
        return int(row["stored"]) if row else 0
