"""The dense index over `agent_memories`: exact in shard 0, HNSW in the shard of a large area.

What decides is where a row is, not what the planner believes: the statement names each shard and asks it in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg.halfvec import HalfVectorBinaryDumper
from psycopg import sql

from backends.memory.areas import Area, Connection, all_of, conditions, identity, of_tenant, seen_by
from backends.memory.candidates import DIFFERENT, are_enough, candidates_of, depths
from backends.postgres.pool import Database
from contracts.identity import Tenant
from contracts.llm.embeddings import EmbeddingBatch
from contracts.memory.api import Candidate
from contracts.memory.ports import Filters

EF_SEARCH = 220
TIMEOUT_S = 4.0
"""A large index that is not in memory yet takes its time."""
EXACT_FILTERED_ROWS = 4_000
"""With filters, a shard is scanned exactly while at most this many of its rows pass them."""

# Adding zero hides the order from the index: this is the exact scan.
EXACT = sql.SQL("""
(SELECT id, kind, created_at, chunk_no, agent_id, content, embedding <=> %(question)s::halfvec AS distance
 FROM agent_memories WHERE shard = {shard} AND {where} AND model_version = %(version)s
 ORDER BY (embedding <=> %(question)s::halfvec) + 0 LIMIT %(depth)s)
""")
# The cast is the index's expression.
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
    SELECT FROM agent_memories WHERE shard = {shard} AND {where} AND model_version = %(version)s LIMIT %(most)s
) AS passing
""")
# Without a sort the planner has no way around the index where there is one; exact branches have no other way than a sort.
PREPARE = """
SELECT set_config('hnsw.ef_search', %(ef)s, true), set_config('hnsw.iterative_scan', 'relaxed_order', true),
       set_config('enable_sort', 'off', true), set_config('jit', 'off', true)
"""

# pgvector registers its types per connection, after asking the server for their numbers. The casts in
# the statements name the type, so the dumper alone is enough.
psycopg.adapters.register_dumper(HalfVector, HalfVectorBinaryDumper)


def half_vectors(batch: EmbeddingBatch) -> list[HalfVector]:
    """Returns the vectors in half precision, as they are stored; statements say `%(name)s::halfvec`."""
    rows = np.frombuffer(batch.data, "<f4").reshape(len(batch), batch.dimension)
    return [HalfVector(row) for row in rows.astype(np.float16)]


class VectorStore:
    """Implements DenseIndex."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def search(
        self, tenant: Tenant, filters: Filters, question: EmbeddingBatch, limit: int
    ) -> list[Candidate]:
        """See the port. One transaction; the vector is in hand before a connection is taken."""
        narrow, values = conditions(filters)
        values |= {
            **identity(tenant),
            "question": half_vectors(question)[0],
            "version": question.model_version,
            "limit": limit,
        }
        async with of_tenant(self._database, tenant, timeout_s=TIMEOUT_S) as connection:
            areas = await seen_by(connection, tenant)
            approximate = await self._approximate(connection, areas, filters, narrow, values)
            if approximate:
                await connection.execute(PREPARE, {"ef": str(max(EF_SEARCH, limit))})
            for depth in depths(limit):
                statement = dense_statement(areas, approximate, narrow, question.dimension)
                rows = await (
                    await connection.execute(statement, {**values, "depth": depth})
                ).fetchall()
                exhausted = not approximate and (not rows or rows[0]["looked_at"] < depth)
                if exhausted or are_enough(rows, limit):
                    break
                approximate = set()  # many equal vectors are an island in the graph of an index: it leads nowhere else
        return candidates_of(rows)

    async def _approximate(
        self,
        connection: Connection,
        areas: Iterable[Area],
        filters: Filters,
        narrow: Sequence[sql.Composable],
        values: dict[str, Any],
    ) -> set[int]:
        """Returns the shards to ask their index: those where too many rows pass the filters for an exact scan."""
        shards = set()
        for area in areas:
            if area.shard and (
                not filters.narrow or await self._many_pass(connection, area, narrow, values)
            ):
                shards.add(area.shard)
        return shards

    async def _many_pass(
        self,
        connection: Connection,
        area: Area,
        narrow: Sequence[sql.Composable],
        values: dict[str, Any],
    ) -> bool:
        statement = PASSING.format(shard=area.shard, where=all_of(area.predicate, narrow))
        row = await (
            await connection.execute(statement, {**values, "most": EXACT_FILTERED_ROWS + 1})
        ).fetchone()
        return row is not None and row["rows"] > EXACT_FILTERED_ROWS


def dense_statement(
    areas: Iterable[Area], approximate: set[int], narrow: Sequence[sql.Composable], dimension: int
) -> sql.Composed:
    """Returns the search over every shard of `areas`; those in `approximate` are asked through their HNSW index."""
    branches = [
        (APPROXIMATE if shard in approximate else EXACT).format(
            shard=shard, where=all_of(area.predicate, narrow), dimension=sql.Literal(dimension)
        )
        for area in areas
        for shard in area.shards
    ]
    return DIFFERENT.format(chunks=BEST.format(branches=sql.SQL(" UNION ALL ").join(branches)))
