"""Gives large areas a shard of their own with an HNSW index, and keeps moving their new rows there.

Stores never wait for it: new rows always land in shard 0. A shard is announced first and filled only after every query
that did not know of it yet must have ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.memory.areas import Area, Connection, lock, working
from backends.postgres.pool import Database
from contracts.events import EventLog

GRACE_S = 5
MOVE_AT_ONCE = 500
INDEX_TIMEOUT_S = 1_800.0
MOVE_TIMEOUT_S = 30.0

DUE = """
SELECT microdao_id, agent_id, shard FROM memory_areas
WHERE (shard = 0 AND unsharded > %(exact_rows)s)
   OR (shard > 0 AND unsharded > %(remainder)s AND shard_opened_at < now() - make_interval(secs => %(grace)s))
LIMIT 50
"""
COUNT = """
SELECT count(*) AS rows FROM agent_memories
WHERE shard = 0 AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND model_version <> ''
"""
NOTE = "UPDATE memory_areas SET unsharded = %(rows)s WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s"
OPEN = "SELECT memory_open_shard(%(microdao_id)s, %(agent_id)s, %(most)s) AS shard"
ANNOUNCE = """
UPDATE memory_areas SET shard = %(shard)s, shard_opened_at = now() WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""
MOVE = """
UPDATE agent_memories SET shard = %(shard)s
WHERE shard = 0 AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND (chunk_no, model_version) IN (
    SELECT chunk_no, model_version FROM agent_memories
    WHERE shard = 0 AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND model_version <> '' LIMIT %(most)s
)
"""
VERSIONS = """
SELECT DISTINCT ON (model_version) model_version AS version, vector_dims(embedding) AS dimension FROM agent_memories
WHERE shard = %(shard)s AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""
INDEX = "SELECT memory_index_shard(%(shard)s, %(version)s, %(dimension)s)"


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """An area is scanned exactly up to `exact_rows`; beyond, it gets a shard, and `remainder` rows may lie outside of it.

    There are at most `most` shards; what does not get one is still searched, exactly.
    """

    exact_rows: int = 10_000
    remainder: int = 1_000
    most: int = 200


class ShardUpkeep:
    """Implements Upkeep."""

    name = "shards"

    def __init__(
        self, database: Database, events: EventLog, settings: ShardSettings, interval_s: float = 5.0
    ) -> None:
        self._database = database
        self._events = events
        self._settings = settings
        self.interval_s = interval_s

    async def run(self) -> None:
        """Opens, fills and indexes what is due."""
        limits = {
            "exact_rows": self._settings.exact_rows,
            "remainder": self._settings.remainder,
            "grace": GRACE_S,
        }
        async with working(self._database) as connection:
            due = await (await connection.execute(DUE, limits)).fetchall()
        for row in due:
            area = Area(row["microdao_id"], row["agent_id"], row["shard"])
            await (self.fill(area) if area.shard else self.open(area))

    async def open(self, area: Area) -> None:
        """Makes and announces a shard for `area`, if it is as large as its counter says."""
        async with working(self._database, area, timeout_s=MOVE_TIMEOUT_S) as connection:
            await lock(connection, area)
            if await _recount(connection, area) <= self._settings.exact_rows:
                return
            row = await (
                await connection.execute(OPEN, {**area.identity, "most": self._settings.most})
            ).fetchone()
            if row is None or row["shard"] is None:
                self._events.emit(
                    "memory.no_shard_left", microdao_id=area.microdao_id, agent_id=area.agent_id
                )
                return
            await connection.execute(ANNOUNCE, {**area.identity, "shard": row["shard"]})
        self._events.emit(
            "memory.shard_opened",
            microdao_id=area.microdao_id,
            agent_id=area.agent_id,
            shard=row["shard"],
        )

    async def fill(self, area: Area) -> None:
        """Moves the area's embedded rows from shard 0, a few at a time, then makes sure of the index."""
        moved = MOVE_AT_ONCE
        while moved == MOVE_AT_ONCE:
            async with working(self._database, area, timeout_s=MOVE_TIMEOUT_S) as connection:
                await lock(connection, area)
                values = {**area.identity, "shard": area.shard, "most": MOVE_AT_ONCE}
                moved = (await connection.execute(MOVE, values)).rowcount
        async with working(self._database, area, timeout_s=INDEX_TIMEOUT_S) as connection:
            await _recount(connection, area)
            for version in await (
                await connection.execute(VERSIONS, {**area.identity, "shard": area.shard})
            ).fetchall():
                await connection.execute(INDEX, {**version, "shard": area.shard})


async def _recount(connection: Connection, area: Area) -> int:
    row = await (await connection.execute(COUNT, area.identity)).fetchone()
    rows = int(row["rows"]) if row else 0
    await connection.execute(NOTE, {**area.identity, "rows": rows})
    return rows
