"""Gives large areas a shard of their own with an HNSW index, and moves their new rows there.

Stores never wait for it: new rows always arrive in shard 0. A shard is announced first; rows move
there only when every query has ended that may not know of it.
"""

from __future__ import annotations

from backends.memory.areas import Connection, background_rows, background_transaction, lock
from backends.postgres.pool import Database
from configs.memory import VectorSettings
from contracts.events import EventLog
from contracts.memory.ports import Area

INDEX_TIMEOUT_S = 1_800.0
MOVE_TIMEOUT_S = 30.0
MOVE_AT_ONCE = 500
MARGIN_S = 2.0
"""Beyond a query's timeout: for its cancellation, and for the announcement's own transaction."""

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


class ShardUpkeep:
    """Implements Upkeep.

    Up to `exact_rows` an area is scanned exactly. Beyond, it has a shard, and up to `remainder`
    rows outside of it. There are at most `max_shards`; areas that get none are still scanned. A
    query reads its areas first and ends within `query_timeout_s`.
    """

    name = "shards"

    def __init__(
        self,
        database: Database,
        events: EventLog,
        settings: VectorSettings,
        *,
        query_timeout_s: float,
        remainder: int = 1_000,
        interval_s: float = 5.0,
    ) -> None:
        self._database = database
        self._events = events
        self._settings = settings
        self._remainder = remainder
        self.query_timeout_s = query_timeout_s
        self.interval_s = interval_s

    async def run(self) -> None:
        """Opens, fills and indexes the shards that are due."""
        values = {
            "exact_rows": self._settings.exact_rows,
            "remainder": self._remainder,
            "grace_s": self.query_timeout_s + MARGIN_S,
        }
        for row in await background_rows(self._database, DUE, values):
            area = Area(**row)
            await (self._fill(area) if area.shard else self._open(area))

    async def _open(self, area: Area) -> None:
        """Creates and announces a shard if the area really has more than `exact_rows` rows."""
        values = {**area.identity, "most": self._settings.max_shards}
        async with background_transaction(
            self._database, area, timeout_s=MOVE_TIMEOUT_S
        ) as connection:
            await lock(connection, area)
            if await _recount(connection, area) <= self._settings.exact_rows:
                return
            row = await (await connection.execute(OPEN, values)).fetchone()
            shard = row and row["shard"]
            if shard:
                await connection.execute(ANNOUNCE, {**area.identity, "shard": shard})
        if shard:
            self._events.emit("memory.shard_opened", **area.identity, shard=shard)
        else:
            self._events.emit("memory.no_shard_left", **area.identity)

    async def _fill(self, area: Area) -> None:
        """Moves the area's embedded rows in small transactions, then makes sure of the index."""
        while await self._move(area) == MOVE_AT_ONCE:
            pass
        async with background_transaction(
            self._database, area, timeout_s=INDEX_TIMEOUT_S
        ) as connection:
            await _recount(connection, area)
            values = {**area.identity, "shard": area.shard}
            for version in await (await connection.execute(VERSIONS, values)).fetchall():
                await connection.execute(INDEX, {**version, "shard": area.shard})

    async def _move(self, area: Area) -> int:
        values = {**area.identity, "shard": area.shard, "most": MOVE_AT_ONCE}
        async with background_transaction(
            self._database, area, timeout_s=MOVE_TIMEOUT_S
        ) as connection:
            await lock(connection, area)
            return (await connection.execute(MOVE, values)).rowcount


async def _recount(connection: Connection, area: Area) -> int:
    row = await (await connection.execute(COUNT, area.identity)).fetchone()
    rows = int(row["rows"]) if row else 0
    await connection.execute(NOTE, {**area.identity, "rows": rows})
    return rows
