"""The record of embedding models: whose vectors are searched, and the change to another model."""

from __future__ import annotations

from backends.memory.areas import Connection, background_transaction
from backends.postgres.pool import Database
from contracts.llm.embeddings import EmbeddingSpace, check_embedding_space
from contracts.memory.ports import Area

CHUNK_TIMEOUT_S = 60.0

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


class EmbeddingSpaces:
    """Table memory_spaces. The first model in use is searched from the start."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
                return await self._switch(connection, configured, already=target["searched"])
            check_embedding_space(
                EmbeddingSpace(searched["model_version"], searched["dimension"])
                if searched
                else None,
                configured,
            )
            await connection.execute(ADD, _values(configured, searched=True, complete=True))
            return True

    async def begin(self, space: EmbeddingSpace) -> None:
        """Records that re-embedding into `space` has begun."""
        async with background_transaction(self._database) as connection:
            await connection.execute(ADD, _values(space, searched=False, complete=False))

    async def finish(self, space: EmbeddingSpace) -> None:
        """Records that every chunk has a vector of `space`: from now on it may be adopted."""
        async with background_transaction(self._database) as connection:
            await connection.execute(ADD, _values(space, searched=False, complete=True))

    async def forget_others(self) -> None:
        """Removes the records of models that are not searched."""
        async with background_transaction(self._database) as connection:
            await connection.execute(FORGET)

    async def areas(self) -> list[Area]:
        """Returns every area."""
        async with background_transaction(self._database) as connection:
            rows = await (await connection.execute(AREAS)).fetchall()
        return [Area(**row) for row in rows]

    async def catch_up(self, configured: EmbeddingSpace) -> None:
        """Queues chunks without a vector of `configured`; call it after `adopt` returned True."""
        for area in await self.areas():
            async with background_transaction(
                self._database, area, timeout_s=CHUNK_TIMEOUT_S
            ) as connection:
                await connection.execute(
                    CATCH_UP, {**area.identity, "version": configured.model_version}
                )

    async def _switch(
        self, connection: Connection, configured: EmbeddingSpace, *, already: bool
    ) -> bool:
        if already:
            return False
        await connection.execute(STOP_SEARCHING)
        await connection.execute(SEARCH, {"version": configured.model_version})
        return True


def _values(space: EmbeddingSpace, *, searched: bool, complete: bool) -> dict[str, object]:
    return {
        "version": space.model_version,
        "dimension": space.dimension,
        "searched": searched,
        "complete": complete,
    }
