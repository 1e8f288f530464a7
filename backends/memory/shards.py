"""Partitions of large areas, each with an HNSW index."""

from __future__ import annotations

from backends.memory.areas import Connection, background_transaction, lock
from backends.postgres.pool import Database
from contracts.memory.ports import Area

INDEX_TIMEOUT_S = 1_800.0
MOVE_TIMEOUT_S = 30.0

DUE = """
SELECT microdao_id, agent_id, shard FROM memory_areas
WHERE (shard = 0 AND unsharded > %(exact_rows)s)
   OR (shard > 0 AND unsharded > %(remainder)s
       AND shard_opened_at < now() - make_interval(secs => %(grace_s)s))
LIMIT 50
"""
COUNT = """
SELECT count(*) AS rows FROM agent_memories
WHERE shard = 0 AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
  AND model_version <> ''
"""
NOTE = """
UPDATE memory_areas SET unsharded = %(rows)s
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""
OPEN = "SELECT memory_open_shard(%(microdao_id)s, %(agent_id)s, %(most)s) AS shard"
ANNOUNCE = """
UPDATE memory_areas SET shard = %(shard)s, shard_opened_at = now()
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""
MOVE = """
UPDATE agent_memories SET shard = %(shard)s
WHERE shard = 0 AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
  AND (chunk_no, model_version) IN (
    SELECT chunk_no, model_version FROM agent_memories
    WHERE shard = 0 AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
      AND model_version <> '' LIMIT %(most)s
)
"""
VERSIONS = """
SELECT DISTINCT ON (model_version) model_version AS version, vector_dims(embedding) AS dimension
FROM agent_memories
WHERE shard = %(shard)s AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""
INDEX = "SELECT memory_index_shard(%(shard)s, %(version)s, %(dimension)s)"


class ShardTables:
    """Implements ShardStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, *, exact_rows: int, remainder: int, grace_s: float) -> list[Area]:
        values = {"exact_rows": exact_rows, "remainder": remainder, "grace_s": grace_s}
        async with background_transaction(self._database) as connection:
            rows = await (await connection.execute(DUE, values)).fetchall()
        return [Area(**row) for row in rows]

    async def open(self, area: Area, *, exact_rows: int, most: int) -> int | None:
        async with background_transaction(
            self._database, area, timeout_s=MOVE_TIMEOUT_S
        ) as connection:
            await lock(connection, area)
            if await _recount(connection, area) <= exact_rows:
                return None
            values = {**area.identity, "most": most}
            row = await (await connection.execute(OPEN, values)).fetchone()
            shard = int(row["shard"] or 0) if row else 0
            if shard:
                await connection.execute(ANNOUNCE, {**area.identity, "shard": shard})
        return shard

    async def move(self, area: Area, most: int) -> int:
        values = {**area.identity, "shard": area.shard, "most": most}
        async with background_transaction(
            self._database, area, timeout_s=MOVE_TIMEOUT_S
        ) as connection:
            await lock(connection, area)
            return (await connection.execute(MOVE, values)).rowcount

    async def index(self, area: Area) -> None:
        """Counts the rows outside of the shard as well."""
        values = {**area.identity, "shard": area.shard}
        async with background_transaction(
            self._database, area, timeout_s=INDEX_TIMEOUT_S
        ) as connection:
            await _recount(connection, area)
            for version in await (await connection.execute(VERSIONS, values)).fetchall():
                await connection.execute(INDEX, {**version, "shard": area.shard})


async def _recount(connection: Connection, area: Area) -> int:
    row = await (await connection.execute(COUNT, area.identity)).fetchone()
    rows = int(row["rows"]) if row else 0
    await connection.execute(NOTE, {**area.identity, "rows": rows})
    return rows
