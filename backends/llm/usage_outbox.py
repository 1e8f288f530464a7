"""The calls whose `usage.llm` message is still to be published, in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from backends.postgres.pool import PostgresAdapter

STATEMENT_TIMEOUT_S = 5.0

ADD = "INSERT INTO llm_usage_outbox (id) SELECT unnest(%(ids)s::uuid[]) ON CONFLICT DO NOTHING"
TAKE = """
DELETE FROM llm_usage_outbox
WHERE id IN (SELECT id FROM llm_usage_outbox ORDER BY id LIMIT %(most)s FOR UPDATE SKIP LOCKED)
RETURNING id
"""
CALLS = "SELECT * FROM llm_usage WHERE id = ANY (%(ids)s)"
ATTEMPTS = "SELECT * FROM llm_attempts WHERE call_id = ANY (%(ids)s) ORDER BY call_id, number"
PURGE = """
DELETE FROM llm_usage_outbox
WHERE id IN (
    SELECT id FROM llm_usage_outbox WHERE added_at < now() - make_interval(days => %(days)s)
    ORDER BY added_at LIMIT %(most)s FOR UPDATE SKIP LOCKED
)
"""


class PostgresUsageOutbox(PostgresAdapter):
    """Implements UsageOutbox. Every method raises DatabaseUnavailable and DeadlineExceeded."""

    async def add(self, ids: Sequence[str]) -> None:
        """Adds calls by their ids; one that is there already stays."""
        async with self._database.transaction(timeout_s=STATEMENT_TIMEOUT_S) as connection:
            await connection.execute(ADD, {"ids": ids})

    @asynccontextmanager
    async def take(self, most: int) -> AsyncIterator[list[Mapping[str, Any]]]:
        """Takes calls, oldest first, that no other process is taking.

        They stay in the outbox when the block raises.
        """
        async with self._database.transaction(timeout_s=STATEMENT_TIMEOUT_S) as connection:
            taken = await (await connection.execute(TAKE, {"most": most})).fetchall()
            ids = {"ids": [row["id"] for row in taken]}
            calls = await (await connection.execute(CALLS, ids)).fetchall() if taken else []
            tries = await (await connection.execute(ATTEMPTS, ids)).fetchall() if calls else []
            of_call: dict[Any, list[Mapping[str, Any]]] = {}
            for each in tries:
                of_call.setdefault(each["call_id"], []).append(each)
            yield [{**call, "tries": of_call.get(call["id"])} for call in calls]

    async def purge(self, days: int, most: int) -> int:
        """Deletes calls that were added more than `days` ago; returns how many."""
        async with self._database.transaction(timeout_s=STATEMENT_TIMEOUT_S) as connection:
            return (await connection.execute(PURGE, {"days": days, "most": most})).rowcount
