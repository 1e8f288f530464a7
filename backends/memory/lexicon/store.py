"""Upkeep of the lexical index: which areas are due, and each job as transactions of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from psycopg import sql

from backends.memory.areas import background_transaction, lock, predicate_of
from backends.memory.lexicon import merging
from backends.memory.lexicon.grams import fingerprint, grams
from backends.memory.lexicon.postings import keep, pack_terms, unpack
from backends.postgres.pool import Database
from contracts.memory.background import LexiconWork
from contracts.memory.ports import Area

CHUNKS_AT_ONCE = 500
TIMEOUT_S = 60.0

DUE = """
SELECT microdao_id, agent_id, shard, removed, lexicon FROM memory_areas AS area
WHERE lexicon <> %(lexicon)s OR unmerged > %(unmerged)s OR removed > %(removed)s OR %(unmerged)s < (
    -- While the embedder is unavailable the counter does not change, but terms accumulate.
    SELECT count(*) FROM (
        SELECT FROM memory_queue AS queue
        WHERE queue.microdao_id = area.microdao_id AND queue.agent_id = area.agent_id
        LIMIT %(unmerged)s + 1
    ) AS waiting
) LIMIT 100
"""
READ = sql.SQL("""
SELECT chunk_no, content FROM agent_memories
WHERE {area} AND chunk_no > %(after)s ORDER BY chunk_no LIMIT %(most)s
""")
ALIVE = sql.SQL("SELECT chunk_no FROM agent_memories WHERE {area}")
HAS_POSTINGS = """
SELECT FROM memory_postings
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s LIMIT 1
"""
DROP_TERMS = """
DELETE FROM memory_terms
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND chunk_no = ANY(%(chunks)s)
"""
REBUILT = """
UPDATE memory_areas SET lexicon = %(lexicon)s, removed = CASE WHEN %(swept)s THEN 0 ELSE removed END
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""


class LexiconTables:
    """Implements LexiconStore."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._fingerprint = fingerprint()

    async def due(self, *, unmerged: int, removed: int) -> list[LexiconWork]:
        values = {"unmerged": unmerged, "removed": removed, "lexicon": self._fingerprint}
        async with background_transaction(self._database) as connection:
            rows = await (await connection.execute(DUE, values)).fetchall()
        return [
            LexiconWork(
                Area(row["microdao_id"], row["agent_id"], row["shard"]),
                row["removed"],
                rebuild=row["lexicon"] != self._fingerprint,
            )
            for row in rows
        ]

    async def merge(self, area: Area) -> None:
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            await merging.merge(connection, area)

    async def sweep(self, area: Area) -> None:
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            await merging.sweep(connection, area)

    async def rebuild(self, area: Area) -> int | None:
        """Makes the terms between transactions, so nobody waits for that.

        Chunks stored meanwhile have new terms already. An area that was never merged was written by
        this version: it is only marked.
        """
        if not await self._has_postings(area):
            return None
        parts: list[bytes] = []
        chunks: list[int] = []
        while rows := await self._chunks(area, chunks[-1] if chunks else -1):
            parts.append(await asyncio.to_thread(_terms, rows))
            chunks += [row["chunk_no"] for row in rows]
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            alive = await (
                await connection.execute(ALIVE.format(area=predicate_of(area)), area.identity)
            ).fetchall()
            await connection.execute(DROP_TERMS, {**area.identity, "chunks": chunks})
            numbers = np.array([row["chunk_no"] for row in alive], np.uint32)
            await merging.replace(connection, area, keep(unpack(b"".join(parts)), numbers))
            values = {**area.identity, "lexicon": self._fingerprint, "swept": True}
            await connection.execute(REBUILT, values)
        return len(chunks)

    async def _has_postings(self, area: Area) -> bool:
        """Whether the area was merged before; records the fingerprint if not."""
        async with background_transaction(self._database, area) as connection:
            if await (await connection.execute(HAS_POSTINGS, area.identity)).fetchone() is not None:
                return True
            values = {**area.identity, "lexicon": self._fingerprint, "swept": False}
            await connection.execute(REBUILT, values)
        return False

    async def _chunks(self, area: Area, after: int) -> list[dict[str, Any]]:
        values = {**area.identity, "after": after, "most": CHUNKS_AT_ONCE}
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            statement = READ.format(area=predicate_of(area))
            return await (await connection.execute(statement, values)).fetchall()


def _terms(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(pack_terms(row["chunk_no"], grams(row["content"])) for row in rows)
