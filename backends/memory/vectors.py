"""The dense index over `agent_memories`: exact in shard 0, HNSW in the shard of a large area.

A search's statement names each shard and says how to search it, so that the planner has no choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg.halfvec import HalfVectorBinaryDumper, HalfVectorDumper
from psycopg import sql

from backends.memory.areas import (
    Connection,
    all_of,
    conditions,
    identity,
    predicate_of,
    tenant_transaction,
)
from backends.memory.candidates import DISTINCT_ITEMS, are_enough, candidates_of, depths
from backends.postgres.pool import PostgresAdapter
from contracts.llm.embeddings import EmbeddingBatch
from contracts.memory.ports import Area, Filters, ItemCandidate, SearchScope

EF_SEARCH = 220
TIMEOUT_S = 4.0
"""Long, because a large index may have to be read from disk first."""
EXACT_FILTERED_ROWS = 4_000
"""A filtered search scans a shard exactly while at most this many of its rows pass the filters."""

# Exact: adding zero keeps the planner from using an index for the order.
EXACT = sql.SQL("""
(SELECT id, kind, created_at, chunk_no, agent_id, content,
        embedding <=> %(question)s::halfvec AS distance
 FROM agent_memories WHERE shard = {shard} AND {where} AND model_version = %(version)s
 ORDER BY (embedding <=> %(question)s::halfvec) + 0 LIMIT %(depth)s)
""")
# Approximate: the cast is the expression of the HNSW index.
APPROXIMATE = sql.SQL("""
(SELECT id, kind, created_at, chunk_no, agent_id, content,
        embedding::halfvec({dimension}) <=> %(question)s::halfvec({dimension}) AS distance
 FROM agent_memories WHERE shard = {shard} AND {where} AND model_version = %(version)s
 ORDER BY embedding::halfvec({dimension}) <=> %(question)s::halfvec({dimension}) LIMIT %(depth)s)
""")
BEST = sql.SQL(
    "SELECT *, 1 - distance AS score FROM ({branches}) AS found ORDER BY distance LIMIT %(depth)s"
)
PASSING = sql.SQL("""
SELECT count(*) AS rows FROM (
    SELECT FROM agent_memories
    WHERE shard = {shard} AND {where} AND model_version = %(version)s LIMIT %(most)s
) AS passing
""")
# Without sorts the planner must use the index where there is one; exact branches can only sort.
PREPARE = """
SELECT set_config('hnsw.ef_search', %(ef)s, true),
       set_config('hnsw.iterative_scan', 'relaxed_order', true),
       set_config('enable_sort', 'off', true), set_config('jit', 'off', true)
"""

# pgvector registers its types per connection, after asking the server for their numbers. Here the
# casts in the statements name the type, so the dumpers alone are enough; the last one is preferred.
psycopg.adapters.register_dumper(HalfVector, HalfVectorDumper)
psycopg.adapters.register_dumper(HalfVector, HalfVectorBinaryDumper)


def half_vectors(batch: EmbeddingBatch) -> list[HalfVector]:
    """Returns the vectors in half precision, as stored; statements cast them: `::halfvec`."""
    rows = np.frombuffer(batch.data, "<f4").reshape(len(batch), batch.dimension)
    return [HalfVector(row) for row in rows.astype(np.float16)]


class VectorStore(PostgresAdapter):
    """Implements DenseIndex."""

    async def search(
        self, scope: SearchScope, filters: Filters, question: EmbeddingBatch, limit: int
    ) -> list[ItemCandidate]:
        where, values = conditions(filters)
        values |= {
            **identity(scope.tenant),
            "question": half_vectors(question)[0],
            "version": question.model_version,
            "limit": limit,
        }
        async with tenant_transaction(
            self._database, scope.tenant, timeout_s=TIMEOUT_S
        ) as connection:
            approximate = await _approximate(connection, scope.areas, filters, where, values)
            if approximate:
                await connection.execute(PREPARE, {"ef": str(max(EF_SEARCH, limit))})
            for depth in depths(limit):
                statement = dense_statement(scope.areas, approximate, where, question.dimension)
                rows = await (
                    await connection.execute(statement, {**values, "depth": depth})
                ).fetchall()
                exhausted = not approximate and (not rows or rows[0]["read_chunks"] < depth)
                if exhausted or are_enough(rows, limit):
                    break
                # HNSW found too few different items, because equal vectors are each other's
                # neighbours: search exactly.
                approximate = set()
        return candidates_of(rows)


async def _approximate(
    connection: Connection,
    areas: Iterable[Area],
    filters: Filters,
    where: Sequence[sql.Composable],
    values: dict[str, Any],
) -> set[int]:
    """Returns the shards to search by index: too many of their rows pass the filters to scan."""
    shards = set()
    for area in areas:
        if area.shard and (not filters.is_set or await _many_pass(connection, area, where, values)):
            shards.add(area.shard)
    return shards


async def _many_pass(
    connection: Connection, area: Area, where: Sequence[sql.Composable], values: dict[str, Any]
) -> bool:
    statement = PASSING.format(shard=area.shard, where=all_of(predicate_of(area), where))
    most = {"most": EXACT_FILTERED_ROWS + 1}
    row = await (await connection.execute(statement, {**values, **most})).fetchone()
    return row is not None and row["rows"] > EXACT_FILTERED_ROWS


def dense_statement(
    areas: Iterable[Area], approximate: set[int], where: Sequence[sql.Composable], dimension: int
) -> sql.Composed:
    """Returns the search over every shard of `areas`; HNSW indexes are used in `approximate`."""
    branches = [
        (APPROXIMATE if shard in approximate else EXACT).format(
            shard=shard, where=all_of(predicate_of(area), where), dimension=sql.Literal(dimension)
        )
        for area in areas
        for shard in area.shards
    ]
    return DISTINCT_ITEMS.format(chunks=BEST.format(branches=sql.SQL(" UNION ALL ").join(branches)))
