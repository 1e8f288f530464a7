"""The record of embedding models: whose vectors are searched, and the change to another model."""

from __future__ import annotations

from typing import Any

from backends.memory.areas import background_rows, background_transaction, lock
from backends.memory.vectors import half_vectors
from backends.postgres.pool import PostgresAdapter
from contracts.llm.embeddings import EmbeddingBatch, EmbeddingSpace, check_embedding_space
from contracts.memory.background import Claim, PendingChunk
from contracts.memory.ports import Area

TIMEOUT_S = 60.0

LOCK = "LOCK TABLE memory_spaces IN SHARE ROW EXCLUSIVE MODE"
READ = "SELECT model_version, dimension, searched, complete FROM memory_spaces"
ADD = """
INSERT INTO memory_spaces (model_version, dimension, searched, complete)
VALUES (%(version)s, %(dimension)s, %(searched)s, %(complete)s)
ON CONFLICT (model_version) DO UPDATE SET complete = excluded.complete
"""
STOP_SEARCHING = "UPDATE memory_spaces SET searched = false WHERE searched"
SEARCH = "UPDATE memory_spaces SET searched = true, since = now() WHERE model_version = %(version)s"
FORGET = "DELETE FROM memory_spaces WHERE NOT searched"
AREAS = "SELECT microdao_id, agent_id, shard FROM memory_areas"
# Chunks stored with the old model while the re-embedding finished get a row for the new one.
CATCH_UP = """
WITH lacking AS (
    SELECT DISTINCT ON (chunk_no) * FROM agent_memories AS old
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND model_version <> ''
      AND NOT EXISTS (
        SELECT FROM agent_memories AS new
        WHERE new.microdao_id = %(microdao_id)s AND new.agent_id = %(agent_id)s
          AND new.chunk_no = old.chunk_no
          AND new.model_version IN (%(version)s, '')
    )
), row AS (
    INSERT INTO agent_memories (
        chunk_no, id, part, document_id, microdao_id, agent_id, channel_id, kind, created_at,
        content, meta
    )
    SELECT chunk_no, id, part, document_id, microdao_id, agent_id, channel_id, kind, created_at,
           content, meta
    FROM lacking
)
INSERT INTO memory_queue (microdao_id, agent_id, chunk_no, memory_id)
SELECT microdao_id, agent_id, chunk_no, id FROM lacking
ON CONFLICT DO NOTHING
"""

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


class EmbeddingSpaces(PostgresAdapter):
    """Table memory_spaces, and vectors of another model beside those that are searched.

    The first model in use is searched from the start.
    """

    async def adopt(self, configured: EmbeddingSpace) -> bool:
        """Makes `configured` the model whose vectors are searched; returns False if it was already.

        Raises:
            ConfigurationError: the stored vectors are another model's, and re-embedding into
                `configured` is not complete.
            DatabaseUnavailable: PostgreSQL is unavailable.
        """
        async with background_transaction(self._database) as connection:
            await connection.execute(LOCK)
            known = {
                row["model_version"]: row
                for row in await (await connection.execute(READ)).fetchall()
            }
            searched = next((row for row in known.values() if row["searched"]), None)
            target = known.get(configured.model_version)
            if (
                target is not None
                and target["complete"]
                and target["dimension"] == configured.dimension
            ):
                if target["searched"]:
                    return False
                await connection.execute(STOP_SEARCHING)
                await connection.execute(SEARCH, {"version": configured.model_version})
                return True
            check_embedding_space(
                EmbeddingSpace(searched["model_version"], searched["dimension"])
                if searched
                else None,
                configured,
            )
            await connection.execute(ADD, _values(configured, searched=True, complete=True))
            return True

    async def note(self, space: EmbeddingSpace, *, complete: bool) -> None:
        """Records that re-embedding into `space` has begun, or that it is `complete`: every chunk
        has a vector, and from now on `space` may be adopted.
        """
        async with background_transaction(self._database) as connection:
            await connection.execute(ADD, _values(space, searched=False, complete=complete))

    async def forget_others(self) -> None:
        """Removes the records of models that are not searched."""
        async with background_transaction(self._database) as connection:
            await connection.execute(FORGET)

    async def areas(self) -> list[Area]:
        """Returns every area."""
        return [Area(**row) for row in await background_rows(self._database, AREAS)]

    async def catch_up(self, configured: EmbeddingSpace) -> None:
        """Queues chunks without a vector of `configured`; call it after `adopt` returned True."""
        for area in await self.areas():
            async with background_transaction(
                self._database, area, timeout_s=TIMEOUT_S
            ) as connection:
                await connection.execute(
                    CATCH_UP, {**area.identity, "version": configured.model_version}
                )

    async def lacking(self, area: Area, version: str, after: int, limit: int) -> Claim:
        """Returns the next chunks above number `after` that have no vector of `version`."""
        values = {**area.identity, "version": version, "after": after, "limit": limit}
        rows = await background_rows(self._database, LACKING, values, area, timeout_s=TIMEOUT_S)
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


def _values(space: EmbeddingSpace, *, searched: bool, complete: bool) -> dict[str, object]:
    return {
        "version": space.model_version,
        "dimension": space.dimension,
        "searched": searched,
        "complete": complete,
    }
