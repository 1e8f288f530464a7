"""Vectors of another model, stored beside those that are searched."""

from __future__ import annotations

from typing import Any

from backends.memory.areas import background_transaction, lock
from backends.memory.vectors import half_vectors
from backends.postgres.pool import Database
from contracts.llm.embeddings import EmbeddingBatch
from contracts.memory.background import Claim, PendingChunk
from contracts.memory.ports import Area

TIMEOUT_S = 60.0

LACKING = """
SELECT DISTINCT ON (chunk_no) chunk_no, content FROM agent_memories AS old
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND chunk_no > %(after)s
  AND model_version <> '' AND NOT EXISTS (
    SELECT FROM agent_memories AS new
    WHERE new.microdao_id = %(microdao_id)s AND new.agent_id = %(agent_id)s
      AND new.chunk_no = old.chunk_no
      AND new.model_version = %(version)s
)
ORDER BY chunk_no LIMIT %(limit)s
"""
# A chunk deleted meanwhile has no row to copy, so no row is written for it.
WRITE = """
INSERT INTO agent_memories (
    chunk_no, model_version, embedding, id, part, document_id, microdao_id, agent_id, channel_id,
    kind, created_at, content, meta
)
SELECT DISTINCT ON (old.chunk_no) old.chunk_no, %(version)s, added.embedding::halfvec, old.id,
       old.part, old.document_id, old.microdao_id, old.agent_id, old.channel_id, old.kind,
       old.created_at, old.content, old.meta
FROM unnest(%(chunks)s::bigint[], %(vectors)s::text[]) AS added (chunk_no, embedding)
JOIN agent_memories AS old ON old.chunk_no = added.chunk_no
WHERE old.microdao_id = %(microdao_id)s AND old.agent_id = %(agent_id)s
ON CONFLICT DO NOTHING
"""
COUNT = """
UPDATE memory_areas SET unsharded = unsharded + %(count)s
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""
PRUNE = """
DELETE FROM agent_memories AS old USING (
    SELECT shard, chunk_no, model_version FROM agent_memories
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
      AND model_version NOT IN (%(version)s, '') LIMIT %(limit)s
) AS gone
WHERE old.microdao_id = %(microdao_id)s AND old.agent_id = %(agent_id)s AND old.shard = gone.shard
  AND old.chunk_no = gone.chunk_no AND old.model_version = gone.model_version
  AND EXISTS (
    SELECT FROM agent_memories AS new
    WHERE new.microdao_id = %(microdao_id)s AND new.agent_id = %(agent_id)s
      AND new.chunk_no = old.chunk_no
      AND new.model_version IN (%(version)s, '')
  )
"""


class ReembeddingStore:
    """Reads chunks that lack a vector of one model version, and writes it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lacking(self, area: Area, version: str, after: int, limit: int) -> Claim:
        """Returns the next chunks above number `after` that have no vector of `version`."""
        values = {**area.identity, "version": version, "after": after, "limit": limit}
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            rows = await (await connection.execute(LACKING, values)).fetchall()
        return Claim(area, [PendingChunk(row["chunk_no"], row["content"]) for row in rows])

    async def write(self, claim: Claim, vectors: EmbeddingBatch) -> None:
        """Adds the vectors; idempotent."""
        area = claim.area
        values: dict[str, Any] = {
            **area.identity,
            "version": vectors.model_version,
            "chunks": [chunk.chunk_no for chunk in claim.chunks],
            "vectors": [vector.to_text() for vector in half_vectors(vectors)],
            "count": len(vectors),
        }
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            await connection.execute(WRITE, values)
            await connection.execute(COUNT, values)

    async def prune(self, area: Area, version: str, limit: int) -> int:
        """Removes up to `limit` vectors of other versions from chunks that have one of `version`.

        Returns how many.
        """
        values = {**area.identity, "version": version, "limit": limit}
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            return (await connection.execute(PRUNE, values)).rowcount
