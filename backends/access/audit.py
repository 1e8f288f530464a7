"""The audit trail in PostgreSQL: a table that the service role may only add to and read."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import psycopg
from psycopg.rows import DictRow

from backends.postgres.pages import read_page
from backends.postgres.pool import PostgresAdapter
from backends.postgres.purging import purge
from contracts.access.audit import AuditEntry, AuditQuery, AuditRecord
from contracts.identity import Page, first_id, time_of

# The database gives the time: the role may not.
ADD = """
INSERT INTO audit_log (
    id, principal, action, object, outcome, request_id, microdao_id, agent_id, count
)
SELECT id, principal, action, object, outcome, request_id, microdao_id, agent_id, count
FROM jsonb_to_recordset(%(records)s::jsonb) AS record (
    id uuid, principal text, action text, object text, outcome text, request_id text,
    microdao_id text, agent_id text, count integer
)
ON CONFLICT DO NOTHING
"""
# An id holds the time of the act: a refusal is stored seconds later, or after an outage.
PAGE = """
SELECT *, created_at AS stored_at FROM audit_log
WHERE %(microdao_id)s::text IS NULL
    AND (%(principal)s::text IS NULL OR principal = %(principal)s)
    AND (%(action)s::text IS NULL OR action = %(action)s)
    AND (%(outcome)s::text IS NULL OR outcome = %(outcome)s)
    AND id >= coalesce(%(since)s::uuid, '00000000-0000-0000-0000-000000000000')
    AND id < least(%(until)s::uuid, %(after_id)s::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
ORDER BY id DESC
LIMIT %(rows)s
"""
PURGE = "SELECT audit_log_purge(%(keep_days)s, %(at_most)s) AS removed"


async def add_records(
    connection: psycopg.AsyncConnection[DictRow], records: Sequence[AuditRecord]
) -> None:
    """Adds records within a transaction."""
    rows = orjson.dumps([record.model_dump() for record in records]).decode()
    await connection.execute(ADD, {"records": rows})


class PostgresAudit(PostgresAdapter):
    """Implements AuditStore."""

    async def add(self, records: Sequence[AuditRecord]) -> None:
        if records:
            async with self._database.transaction() as connection:
                await add_records(connection, records)

    async def page(self, query: AuditQuery) -> Page[AuditEntry]:
        filters = query.model_dump(exclude={"limit", "cursor"}) | {
            "microdao_id": None,
            "since": query.since and str(first_id(query.since)),
            "until": query.until and str(first_id(query.until)),
        }
        rows, cursor = await read_page(
            self._database, "audit", PAGE, filters, limit=query.limit, cursor=query.cursor
        )
        items = [AuditEntry(**row | {"created_at": time_of(row["id"])}) for row in rows]
        return Page(items=items, next_cursor=cursor)

    async def purge(self, keep_days: int) -> None:
        await purge(self._database, PURGE, keep_days=keep_days)
