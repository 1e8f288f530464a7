"""The short-term tier: an append-only event log, read per channel in order, and its summaries.

Retention shortens the log. The transaction that stores a memory appends its event (records.py), so
neither exists alone.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any, LiteralString

from psycopg import sql

from backends.memory.areas import (
    OWN,
    all_of,
    background_rows,
    background_transaction,
    conditions,
    identity,
    tenant_rows,
    tenant_transaction,
)
from backends.postgres.pool import Database, PostgresAdapter
from backends.postgres.purging import purge_all
from contracts.identity import Tenant
from contracts.memory.ports import Area, Filters, ItemCandidate, LoggedEvent, Summary

RECENT = sql.SQL("""
SELECT memory_id, kind, created_at FROM memory_events
WHERE {where} ORDER BY created_at DESC, seq DESC LIMIT %(limit)s
""")
NEWEST = sql.SQL("""
SELECT seq, memory_id, kind, content, created_at FROM memory_events
WHERE {where} ORDER BY created_at DESC, seq DESC LIMIT %(limit)s
""")
OF_CHANNEL = sql.SQL("channel_id = %(channel_id)s")
AREAS = "SELECT microdao_id, agent_id FROM memory_areas WHERE agent_id <> ''"
EXPIRE: LiteralString = """
DELETE FROM memory_events WHERE seq = ANY (ARRAY(
    SELECT seq FROM memory_events
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
      AND recorded_at < now() - make_interval(secs => %(seconds)s)
    ORDER BY recorded_at LIMIT %(at_most)s
))
"""
EXPIRE_SUMMARIES: LiteralString = """
DELETE FROM memory_summaries WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM memory_summaries
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
      AND created_at < now() - make_interval(secs => %(seconds)s)
    LIMIT %(at_most)s FOR UPDATE
))
"""
SUMMARY = """
SELECT summary AS text, sources, last_seq, since, until, model FROM memory_summaries
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND channel_id = %(channel_id)s
  AND size = %(size)s
"""
# Not written if a source was deleted while the model wrote: the summary would bring it back.
WRITE_SUMMARY = """
INSERT INTO memory_summaries (
    microdao_id, agent_id, channel_id, size, summary, sources, last_seq, since, until, model
)
SELECT %(microdao_id)s, %(agent_id)s, %(channel_id)s, %(size)s, %(text)s, %(sources)s, %(last_seq)s,
       %(since)s, %(until)s, %(model)s
WHERE (
    SELECT count(*) FROM memories
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND id = ANY(%(sources)s)
) = cardinality(%(sources)s)
ON CONFLICT (microdao_id, agent_id, channel_id, size) DO UPDATE
SET summary = excluded.summary, sources = excluded.sources, last_seq = excluded.last_seq,
    since = excluded.since, until = excluded.until, model = excluded.model, created_at = now()
"""
EVERY_CHANNEL = ""
EXPIRE_AT_ONCE = 5_000
DAY_S = 86_400.0
EXPIRE_TIMEOUT_S = 30.0


class ShortTermLog(PostgresAdapter):
    """Implements ShortTermReader."""

    async def recent(self, tenant: Tenant, filters: Filters, limit: int) -> list[ItemCandidate]:
        where, values = conditions(filters)
        values |= {**identity(tenant), "limit": limit}
        statement = RECENT.format(where=all_of(OWN, where))
        rows = await tenant_rows(self._database, tenant, statement, values)
        return [
            ItemCandidate(row["memory_id"], 0.0, row["created_at"], row["kind"], "short-term")
            for row in rows
        ]

    async def read(self, tenant: Tenant, channel_id: str | None, limit: int) -> list[LoggedEvent]:
        where = all_of(OWN, OF_CHANNEL) if channel_id is not None else all_of(OWN)
        values = {**identity(tenant), "channel_id": channel_id, "limit": limit}
        rows = await tenant_rows(self._database, tenant, NEWEST.format(where=where), values)
        return [LoggedEvent(**row) for row in reversed(rows)]


class EventRetention:
    """Implements Upkeep: removes events older than `days`, and summaries that were last written
    more than `summary_days` ago; 0 for never. Their memories stay.
    """

    name = "retention"

    def __init__(
        self,
        database: Database,
        days: float,
        summary_days: float = 0.0,
        interval_s: float = 3_600.0,
    ) -> None:
        self._database = database
        self._due = {EXPIRE: days * DAY_S, EXPIRE_SUMMARIES: summary_days * DAY_S}
        self.interval_s = interval_s

    async def run(self) -> None:
        due = {statement: seconds for statement, seconds in self._due.items() if seconds}
        for row in await background_rows(self._database, AREAS) if due else []:
            area = Area(row["microdao_id"], row["agent_id"])
            for statement, seconds in due.items():
                some = partial(self._expire_some, area, statement, seconds)
                await purge_all(some, EXPIRE_AT_ONCE)

    async def _expire_some(self, area: Area, statement: LiteralString, seconds: float) -> int:
        values = {**area.identity, "seconds": seconds, "at_most": EXPIRE_AT_ONCE}
        async with background_transaction(
            self._database, area, timeout_s=EXPIRE_TIMEOUT_S
        ) as connection:
            return (await connection.execute(statement, values)).rowcount


class Summaries(PostgresAdapter):
    """Implements SummaryStore."""

    async def read(self, tenant: Tenant, channel_id: str | None, size: int) -> Summary | None:
        values = _key(tenant, channel_id, size)
        rows = await tenant_rows(self._database, tenant, SUMMARY, values)
        return Summary(**rows[0]) if rows else None

    async def write(
        self, tenant: Tenant, channel_id: str | None, size: int, summary: Summary
    ) -> None:
        values = _key(tenant, channel_id, size) | asdict(summary)
        values |= {"text": summary.text.replace("\0", ""), "sources": list(summary.sources)}
        async with tenant_transaction(self._database, tenant) as connection:
            await connection.execute(WRITE_SUMMARY, values)


def _key(tenant: Tenant, channel_id: str | None, size: int) -> dict[str, Any]:
    channel = channel_id if channel_id is not None else EVERY_CHANNEL
    return {**identity(tenant), "channel_id": channel, "size": size}
