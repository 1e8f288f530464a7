"""Removes memories from every tier: one, or all of an agent or a channel, with a receipt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from psycopg import sql

from backends.memory.areas import (
    OWN,
    SHARED,
    Connection,
    background_rows,
    background_transaction,
    lock,
)
from backends.memory.lexicon.merging import sweep
from backends.postgres.pool import PostgresAdapter
from contracts.identity import Tenant, new_id
from contracts.memory.administration import EraseReceipt, EraseRequest
from contracts.memory.ports import Area

TIMEOUT_S = 120.0
PIECE = 5_000

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
# A row that is updated meanwhile is missed: the statements without a limit follow.
SOME = sql.SQL(
    "{which} AND ctid = ANY (ARRAY("
    "SELECT ctid FROM {table} WHERE {tenant} AND {which} LIMIT %(at_most)s))"
)
REMOVED = """
INSERT INTO memory_areas AS area (microdao_id, agent_id, removed)
VALUES (%(microdao_id)s, %(agent_id)s, %(removed)s)
ON CONFLICT (microdao_id, agent_id) DO UPDATE SET removed = area.removed + excluded.removed
"""
FORGET_AREA = (
    "DELETE FROM memory_areas WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s"
)
DROP_SHARD = "SELECT memory_drop_shard(%(microdao_id)s, %(agent_id)s)"

AGENTS = "SELECT agent_id FROM memory_areas WHERE microdao_id = %(microdao_id)s"
RECEIPT = """
INSERT INTO memory_erasures (id, microdao_id, agent_id, channel_id, erased)
VALUES (%(id)s, %(microdao_id)s, %(agent_id)s, %(channel_id)s, %(erased)s) RETURNING at
"""

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


async def remove_agent(connection: Connection, area: Area) -> dict[str, int]:
    """Removes everything of an area; returns removed rows by kind."""
    values: dict[str, Any] = dict(area.identity)
    await lock(connection, area)
    erased = await _erase(connection, ALL, ALL, values)
    await _rows(connection, "memory_postings", ALL, values)
    await _rows(connection, "memory_terms", ALL, values)
    await connection.execute(DROP_SHARD, values)
    await connection.execute(FORGET_AREA, values)
    return erased


class ErasureTables(PostgresAdapter):
    """Implements ErasureStore."""

    async def agents(self, microdao_id: str) -> list[str]:
        rows = await background_rows(self._database, AGENTS, {"microdao_id": microdao_id})
        return [row["agent_id"] for row in rows if row["agent_id"] != SHARED]

    async def erase(self, area: Area, channel_id: str | None) -> dict[str, int]:
        """Merged terms are removed, too."""
        values = {**area.identity, "channel_id": channel_id, "at_most": PIECE}
        which = (ALL, ALL) if channel_id is None else (CHANNEL, CHANNEL_OR_ALL)
        erased: Counter[str] = Counter()
        while part := await self._erase_some(area, which, values):
            erased.update(part)
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            if channel_id is None:
                erased.update(await remove_agent(connection, area))
            else:
                await lock(connection, area)
                erased.update(await _erase(connection, *which, values))
                if erased["chunks"]:
                    await sweep(connection, area)
        return erased

    async def _erase_some(
        self, area: Area, which: tuple[sql.SQL, sql.SQL], values: dict[str, Any]
    ) -> Counter[str]:
        """Removes at most `PIECE` rows of each kind; what it returns is empty at the end."""
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            part = Counter(await _erase(connection, *which, values, bounded=True))
            if part["chunks"]:
                await connection.execute(REMOVED, {**values, "removed": part["chunks"]})
        return +part

    async def receipt(self, request: EraseRequest, erased: Mapping[str, int]) -> EraseReceipt:
        values = {
            **request.model_dump(),
            "id": f"erasure-{new_id()}",
            "erased": orjson.dumps(erased).decode(),
        }
        async with self._database.transaction(microdao_id=request.microdao_id) as connection:
            row = await (await connection.execute(RECEIPT, values)).fetchone()
        at: datetime = row["at"] if row else datetime.now(UTC)
        return EraseReceipt(id=values["id"], **request.model_dump(), erased=dict(erased), at=at)


async def _erase(
    connection: Connection,
    which: sql.SQL,
    summaries: sql.SQL,
    values: dict[str, Any],
    *,
    bounded: bool = False,
) -> dict[str, int]:
    def of(table: str, selected: sql.SQL) -> sql.Composable:
        if not bounded:
            return selected
        return SOME.format(table=sql.Identifier(table), tenant=OWN, which=selected)

    async def rows(table: str, selected: sql.SQL) -> int:
        return await _rows(connection, table, of(table, selected), values)

    return {
        "memories": await rows("memories", which),
        "events": await rows("memory_events", which),
        "summaries": await rows("memory_summaries", summaries),
        "chunks": await _chunks(connection, of("agent_memories", which), values),
    }


async def _rows(
    connection: Connection, table: str, which: sql.Composable, values: dict[str, Any]
) -> int:
    statement = ROWS.format(table=sql.Identifier(table), tenant=OWN, which=which)
    return (await connection.execute(statement, values)).rowcount


async def _chunks(connection: Connection, which: sql.Composable, values: dict[str, Any]) -> int:
    row = await (
        await connection.execute(CHUNKS.format(tenant=OWN, which=which), values)
    ).fetchone()
    return int(row["rows"]) if row else 0
