"""Removes memories from every tier, in the caller's transaction."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from backends.memory.areas import OWN, Connection, lock
from backends.memory.lexicon.merging import sweep
from contracts.identity import Tenant
from contracts.memory.ports import Area

CHUNKS = sql.SQL("""
WITH gone AS (DELETE FROM agent_memories WHERE {tenant} AND {which} RETURNING chunk_no),
     terms AS (
        DELETE FROM memory_terms WHERE {tenant} AND chunk_no IN (SELECT chunk_no FROM gone)
     ),
     queued AS (
        DELETE FROM memory_queue WHERE {tenant} AND chunk_no IN (SELECT chunk_no FROM gone)
     )
SELECT count(DISTINCT chunk_no) AS rows FROM gone
""")
ROWS = sql.SQL("DELETE FROM {table} WHERE {tenant} AND {which}")
REMOVED = """
INSERT INTO memory_areas AS area (microdao_id, agent_id, removed)
VALUES (%(microdao_id)s, %(agent_id)s, %(removed)s)
ON CONFLICT (microdao_id, agent_id) DO UPDATE SET removed = area.removed + excluded.removed
"""
FORGET_AREA = (
    "DELETE FROM memory_areas WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s"
)
DROP_SHARD = "SELECT memory_drop_shard(%(microdao_id)s, %(agent_id)s)"

ALL = sql.SQL("true")
ONE = sql.SQL("id = %(id)s")
CHANNEL = sql.SQL("channel_id = %(channel_id)s")
# A summary over all channels includes each of them.
CHANNEL_OR_ALL = sql.SQL("channel_id IN (%(channel_id)s, '')")


async def remove_memory(connection: Connection, tenant: Tenant, memory_id: str) -> bool:
    """Removes one memory; False for an unknown id. The next sweep removes its merged terms."""
    area = Area(tenant.microdao_id, tenant.agent_id)
    values = {**area.identity, "id": memory_id}
    await lock(connection, area)
    if not await _rows(connection, "memories", ONE, values):
        return False
    await _rows(connection, "memory_events", sql.SQL("memory_id = %(id)s"), values)
    await _rows(connection, "memory_summaries", sql.SQL("%(id)s = ANY(sources)"), values)
    chunks = await _chunks(connection, ONE, values)
    await connection.execute(REMOVED, {**values, "removed": chunks})
    return True


async def remove_channel(connection: Connection, tenant: Tenant, channel_id: str) -> dict[str, int]:
    """Removes a channel of an agent, merged terms included; returns removed rows by kind."""
    area = Area(tenant.microdao_id, tenant.agent_id)
    values = {**area.identity, "channel_id": channel_id}
    await lock(connection, area)
    erased = {
        "memories": await _rows(connection, "memories", CHANNEL, values),
        "events": await _rows(connection, "memory_events", CHANNEL, values),
        "summaries": await _rows(connection, "memory_summaries", CHANNEL_OR_ALL, values),
        "chunks": await _chunks(connection, CHANNEL, values),
    }
    await sweep(connection, area)
    return erased


async def remove_agent(connection: Connection, area: Area) -> dict[str, int]:
    """Removes everything of an area; returns removed rows by kind."""
    values: dict[str, Any] = dict(area.identity)
    await lock(connection, area)
    erased = {
        "memories": await _rows(connection, "memories", ALL, values),
        "events": await _rows(connection, "memory_events", ALL, values),
        "summaries": await _rows(connection, "memory_summaries", ALL, values),
        "chunks": await _chunks(connection, ALL, values),
    }
    await _rows(connection, "memory_postings", ALL, values)
    await _rows(connection, "memory_terms", ALL, values)
    await connection.execute(DROP_SHARD, values)
    await connection.execute(FORGET_AREA, values)
    return erased


async def _rows(connection: Connection, table: str, which: sql.SQL, values: dict[str, Any]) -> int:
    statement = ROWS.format(table=sql.Identifier(table), tenant=OWN, which=which)
    return (await connection.execute(statement, values)).rowcount


async def _chunks(connection: Connection, which: sql.SQL, values: dict[str, Any]) -> int:
    row = await (
        await connection.execute(CHUNKS.format(tenant=OWN, which=which), values)
    ).fetchone()
    return int(row["rows"]) if row else 0
