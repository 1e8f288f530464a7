"""Turns and sections beside those that a search found."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from backends.memory.areas import all_of, conditions, identity, predicate_of, tenant_rows
from backends.memory.vectors import half_vectors
from backends.postgres.pool import PostgresAdapter
from contracts.llm.embeddings import EmbeddingBatch
from contracts.memory.ports import Filters, Passage, SearchScope

EACH_SIDE = 2
TIMEOUT_S = 4.0

COLUMNS = sql.SQL(
    "id, kind, created_at, content, chunk_no, part, channel_id, document_id, embedding"
)
# A chunk that is not embedded yet has a row without version; while the model changes, it may have
# one with a vector, too, which is preferred. Of a long turn the first chunk counts.
TURNS = sql.SQL("""
SELECT near.* FROM (
    SELECT DISTINCT ON (id) channel_id, created_at, chunk_no FROM agent_memories
    WHERE shard = ANY({shards}) AND {area} AND id = ANY(%(ids)s) AND part = 0
      AND kind = 'conversation' AND channel_id IS NOT NULL
) AS hit CROSS JOIN LATERAL (
    (SELECT DISTINCT ON (created_at, chunk_no) {columns} FROM agent_memories
     WHERE {where} AND part = 0 AND channel_id = hit.channel_id
       AND (created_at, chunk_no) <= (hit.created_at, hit.chunk_no)
       AND created_at >= hit.created_at - make_interval(secs => %(gap_s)s)
     ORDER BY created_at DESC, chunk_no DESC, model_version DESC LIMIT {each_side} + 1)
    UNION ALL
    (SELECT DISTINCT ON (created_at, chunk_no) {columns} FROM agent_memories
     WHERE {where} AND part = 0 AND channel_id = hit.channel_id
       AND (created_at, chunk_no) > (hit.created_at, hit.chunk_no)
       AND created_at <= hit.created_at + make_interval(secs => %(gap_s)s)
     ORDER BY created_at, chunk_no, model_version DESC LIMIT {each_side})
) AS near
""")
SECTIONS = sql.SQL("""
SELECT near.* FROM (
    SELECT DISTINCT ON (id) document_id, part FROM agent_memories
    WHERE shard = ANY({shards}) AND {area} AND id = ANY(%(ids)s) AND document_id IS NOT NULL
) AS hit CROSS JOIN LATERAL (
    SELECT {columns} FROM agent_memories
    WHERE {where} AND document_id = hit.document_id
      AND part BETWEEN hit.part - {each_side} AND hit.part + {each_side}
) AS near
""")
AROUND = sql.SQL("""
SELECT DISTINCT ON (of, created_at, place) id, of, kind, created_at, content, chunk_no, cosine
FROM (
    SELECT *, 1 - (embedding <=> %(question)s::halfvec) AS cosine,
           coalesce('channel ' || channel_id, 'document ' || document_id) AS of,
           CASE WHEN document_id IS NULL THEN chunk_no ELSE part END AS place
    FROM ({branches}) AS passages
) AS placed ORDER BY of, created_at, place, cosine NULLS LAST
""")
OF_VERSION = sql.SQL("shard = ANY({shards}) AND model_version IN ('', %(version)s)")
OF_CONVERSATION = sql.SQL("kind = 'conversation'")


class SurroundingRows(PostgresAdapter):
    """Implements Surroundings."""

    async def around(
        self,
        scope: SearchScope,
        filters: Filters,
        ids: Sequence[str],
        question: EmbeddingBatch,
        gap_s: float,
    ) -> list[Passage]:
        where, values = conditions(filters)
        values |= {
            **identity(scope.tenant),
            "ids": list(ids),
            "question": half_vectors(question)[0],
            "version": question.model_version,
            "gap_s": gap_s,
        }
        branches = []
        for area in scope.areas:
            shards, own = sql.Literal(area.shards), predicate_of(area)
            version = OF_VERSION.format(shards=shards)
            branches.append(
                TURNS.format(
                    columns=COLUMNS,
                    shards=shards,
                    area=own,
                    where=all_of(version, own, OF_CONVERSATION, where),
                    each_side=EACH_SIDE,
                )
                if area.agent_id
                else SECTIONS.format(
                    columns=COLUMNS,
                    shards=shards,
                    area=own,
                    where=all_of(version, own, where),
                    each_side=EACH_SIDE,
                )
            )
        statement = AROUND.format(branches=sql.SQL(" UNION ALL ").join(branches))
        rows = await tenant_rows(
            self._database, scope.tenant, statement, values, timeout_s=TIMEOUT_S
        )
        return [
            Passage(
                row["id"],
                row["of"],
                row["kind"],
                row["created_at"],
                row["content"],
                row["chunk_no"],
                row["cosine"],
            )
            for row in rows
        ]
