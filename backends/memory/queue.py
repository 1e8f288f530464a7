"""The queue of chunks without an embedding: leases with SKIP LOCKED, areas in turn."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from backends.memory.areas import Connection, background_transaction
from backends.memory.vectors import half_vectors
from backends.postgres.pool import Database
from contracts.llm.embeddings import EmbeddingBatch
from contracts.memory.background import Claim, PendingChunk
from contracts.memory.ports import Area

LEASE_S = 60

# A step by the index to the next area with a free chunk.
NEXT_AREA = sql.SQL("""
SELECT microdao_id, agent_id FROM memory_queue
WHERE {start} AND leased_until < now()
ORDER BY microdao_id, agent_id LIMIT 1
""")
AFTER_LAST = sql.SQL("(microdao_id, agent_id) > (%(microdao_id)s, %(agent_id)s)")
FROM_START = sql.SQL("true")
# Materialised: a join may run a sub-select several times, each time with other rows by SKIP LOCKED.
LEASE = """
WITH free AS MATERIALIZED (
    SELECT chunk_no FROM memory_queue
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND leased_until < now()
    ORDER BY chunk_no LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE memory_queue AS queue SET leased_until = now() + make_interval(secs => %(lease_s)s)
FROM free
WHERE queue.microdao_id = %(microdao_id)s AND queue.agent_id = %(agent_id)s
  AND queue.chunk_no = free.chunk_no
RETURNING queue.chunk_no
"""
CONTENTS = """
SELECT DISTINCT ON (chunk_no) chunk_no, content FROM agent_memories
WHERE shard = 0 AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
  AND chunk_no = ANY(%(chunks)s) ORDER BY chunk_no
"""
WRITE = """
UPDATE agent_memories AS chunk SET embedding = added.embedding::halfvec, model_version = %(version)s
FROM unnest(%(chunks)s::bigint[], %(vectors)s::text[]) AS added (chunk_no, embedding)
WHERE chunk.shard = 0 AND chunk.microdao_id = %(microdao_id)s AND chunk.agent_id = %(agent_id)s
  AND chunk.chunk_no = added.chunk_no AND chunk.model_version = ''
"""
DONE = """
DELETE FROM memory_queue
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND chunk_no = ANY(%(chunks)s)
"""
COUNT = """
INSERT INTO memory_areas AS area (microdao_id, agent_id, unsharded, unmerged)
VALUES (%(microdao_id)s, %(agent_id)s, %(count)s, %(count)s)
ON CONFLICT (microdao_id, agent_id) DO UPDATE SET unsharded = area.unsharded + excluded.unsharded,
    unmerged = area.unmerged + excluded.unmerged
"""
RELEASE = """
UPDATE memory_queue SET leased_until = '-infinity'
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND chunk_no = ANY(%(chunks)s)
"""
REFUSE = """
UPDATE memory_queue SET leased_until = '-infinity', refusals = refusals + 1
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND chunk_no = ANY(%(chunks)s)
"""
GIVE_UP = """
WITH gone AS (
    DELETE FROM memory_queue
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND chunk_no = ANY(%(chunks)s)
      AND refusals >= %(most)s RETURNING 1
) SELECT count(*) AS rows FROM gone
"""


class EmbeddingQueue:
    """Implements IngestionQueue. Remembers the area that was last in turn."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last = Area("", "")

    async def lease(self, limit: int) -> Claim | None:
        """Waits for no lock."""
        async with background_transaction(self._database) as connection:
            area = await self._next_area(connection)
            if area is None:
                return None
            rows = await (
                await connection.execute(
                    LEASE, {**area.identity, "limit": limit, "lease_s": LEASE_S}
                )
            ).fetchall()
        chunks = [row["chunk_no"] for row in rows]
        async with background_transaction(self._database, area) as connection:
            texts = await (
                await connection.execute(CONTENTS, {**area.identity, "chunks": chunks})
            ).fetchall()
            found = {row["chunk_no"] for row in texts}
            if gone := [chunk for chunk in chunks if chunk not in found]:
                await connection.execute(DONE, {**area.identity, "chunks": gone})
        return Claim(area, [PendingChunk(row["chunk_no"], row["content"]) for row in texts])

    async def finish(self, claim: Claim, vectors: EmbeddingBatch) -> None:
        texts = [vector.to_text() for vector in half_vectors(vectors)]
        values = {
            **_values(claim),
            "vectors": texts,
            "version": vectors.model_version,
            "count": len(texts),
        }
        async with background_transaction(self._database, claim.area) as connection:
            await connection.execute(WRITE, values)
            await connection.execute(DONE, values)
            await connection.execute(COUNT, values)

    async def release(self, claim: Claim) -> None:
        async with background_transaction(self._database) as connection:
            await connection.execute(RELEASE, _values(claim))

    async def refuse(self, claim: Claim, most: int) -> int:
        async with background_transaction(self._database) as connection:
            await connection.execute(REFUSE, _values(claim))
            row = await (
                await connection.execute(GIVE_UP, {**_values(claim), "most": most})
            ).fetchone()
        return int(row["rows"]) if row else 0

    async def _next_area(self, connection: Connection) -> Area | None:
        for start in (AFTER_LAST, FROM_START):
            row = await (
                await connection.execute(NEXT_AREA.format(start=start), self._last.identity)
            ).fetchone()
            if row is not None:
                self._last = Area(row["microdao_id"], row["agent_id"])
                return self._last
        return None


def _values(claim: Claim) -> dict[str, Any]:
    return {**claim.area.identity, "chunks": [chunk.chunk_no for chunk in claim.chunks]}
