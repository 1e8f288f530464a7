"""The lexical index in PostgreSQL: BM25 over all of a tenant's chunks, exact at any size.

A new chunk's terms lie in `memory_terms`, readable at once. Upkeep merges them into `memory_postings`, level 1 and then
level 2, by appending to buckets of records; a question reads the buckets of its grams and what is not merged yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from backends.memory.areas import Area, Connection, all_of, conditions, identity, of_tenant, seen_by
from backends.memory.candidates import DEEPEST, DIFFERENT, are_enough, candidates_of, depths
from backends.memory.lexicon.postings import (
    SUMMARY_BUCKET,
    Bm25,
    Scored,
    bucket_of,
    measure,
    read_summaries,
    score,
    unpack,
)
from backends.postgres.pool import Database
from contracts.identity import Tenant
from contracts.memory.api import Candidate
from contracts.memory.ports import Filters, LexicalAnswer, Weigh

MAX_GRAMS = 128
"""Grams of a question whose frequencies are looked up; a longer question is cut, and the rarest of these decide."""
ALLOWED_ROWS = 20_000
"""With filters: as many chunks are told to the scoring beforehand; more than these, and the best are filtered afterwards."""
TIMEOUT_S = 4.0
THREAD_ABOVE_BYTES = 256 << 10
BUDGET_BYTES = 2 << 20
"""Postings read per area: 190,000. The rarest grams come first; those that are over it are in so many chunks that they tell little."""

UNMERGED = sql.SQL(
    "SELECT 0::smallint AS level, 0 AS bucket, terms AS data FROM memory_terms WHERE {area}"
)
# The smallest buckets first, until the budget is spent; what is over it comes without its data, which is not even read.
MERGED = sql.SQL("""
SELECT level, bucket, CASE WHEN before < {budget} THEN data END AS data FROM (
    SELECT level, bucket, data,
           sum(octet_length(data)) OVER (ORDER BY octet_length(data), level, bucket) - octet_length(data) AS before
    FROM memory_postings WHERE {area} AND (level = 1 AND bucket = ANY({first}) OR level = 2 AND bucket = ANY({second}))
) AS sized
""")
ALLOWED = sql.SQL(
    "(SELECT chunk_no FROM agent_memories WHERE shard = ANY({shards}) AND {where} LIMIT {most})"
)
# The array finds the rows, the join their scores.
ROWS = sql.SQL("""
(SELECT id, kind, created_at, chunk_no, agent_id, content, scored.score
 FROM agent_memories JOIN unnest(%(chunks)s::bigint[], %(scores)s::float8[]) AS scored (number, score) ON chunk_no = number
 WHERE shard = ANY({shards}) AND chunk_no = ANY(%(chunks)s) AND {where})
""")
UNION = sql.SQL(" UNION ALL ")

Numbers = npt.NDArray[np.uint32]


class Lexicon:
    """Implements LexicalIndex."""

    def __init__(self, database: Database, bm25: Bm25) -> None:
        self._database = database
        self._bm25 = bm25

    async def search(
        self, tenant: Tenant, filters: Filters, grams: Sequence[str], weigh: Weigh, limit: int
    ) -> LexicalAnswer:
        """See the port. The scoring itself runs between two transactions: no connection waits for it."""
        asked = list(dict.fromkeys(grams))[:MAX_GRAMS]
        if not asked:
            return LexicalAnswer()
        async with of_tenant(self._database, tenant, timeout_s=TIMEOUT_S) as connection:
            areas = await seen_by(connection, tenant)
            rows = await _postings(connection, tenant, areas, asked)
            allowed = await _allowed(connection, tenant, areas, filters)
        scored = await self._score(rows, _Question(asked, weigh, allowed))
        if not scored.chunks:
            return LexicalAnswer(ceiling=scored.ceiling)
        async with of_tenant(self._database, tenant, timeout_s=TIMEOUT_S) as connection:
            candidates = await _candidates(
                connection, tenant, areas, _Wanted(filters, scored, limit)
            )
        return LexicalAnswer(candidates, scored.ceiling)

    async def _score(self, rows: Sequence[dict[str, Any]], question: _Question) -> Scored:
        size = sum(len(row["data"] or b"") for row in rows)
        if size < THREAD_ABOVE_BYTES:
            return _scored(rows, question, self._bm25)
        return await asyncio.to_thread(_scored, rows, question, self._bm25)


@dataclass(frozen=True, slots=True)
class _Question:
    grams: Sequence[str]
    weigh: Weigh
    allowed: Numbers | None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was scored, the filters that it still has to pass, and how many items to find."""

    filters: Filters
    scored: Scored
    limit: int


def _scored(rows: Iterable[dict[str, Any]], question: _Question, bm25: Bm25) -> Scored:
    unmerged: list[bytes] = []
    merged: list[bytes] = []
    summaries: list[bytes] = []
    skipped: set[tuple[int, int]] = set()
    for row in rows:
        if row["data"] is None:
            skipped.add((row["level"], row["bucket"]))
        else:
            (
                unmerged
                if row["level"] == 0
                else summaries
                if row["bucket"] == SUMMARY_BUCKET
                else merged
            ).append(bytes(row["data"]))
    told = [
        gram
        for gram in question.grams
        if not any((level, bucket_of(gram, level)) in skipped for level in (1, 2))
    ]
    fresh = unpack(b"".join(unmerged))
    chunks, length = (
        sum(pair) for pair in zip(measure(fresh), read_summaries(summaries), strict=True)
    )
    return score(
        np.concatenate([fresh, unpack(b"".join(merged))]),
        chunks=chunks,
        length=length,
        grams=told,
        weigh=question.weigh,
        bm25=bm25,
        allowed=question.allowed,
        limit=DEEPEST,
    )


async def _postings(
    connection: Connection, tenant: Tenant, areas: Iterable[Area], grams: Sequence[str]
) -> list[dict[str, Any]]:
    branches = []
    for area in areas:
        branches.append(UNMERGED.format(area=area.predicate))
        first, second = (
            sql.Literal([SUMMARY_BUCKET, *{bucket_of(gram, level) for gram in grams}])
            for level in (1, 2)
        )
        branches.append(
            MERGED.format(area=area.predicate, budget=BUDGET_BYTES, first=first, second=second)
        )
    return await (
        await connection.execute(UNION.join(branches), identity(tenant), binary=True)
    ).fetchall()


async def _allowed(
    connection: Connection, tenant: Tenant, areas: Iterable[Area], filters: Filters
) -> Numbers | None:
    """Returns the chunks that pass the filters; None where all pass, or more than ALLOWED_ROWS."""
    if not filters.narrow:
        return None
    narrow, values = conditions(filters)
    branches = [
        ALLOWED.format(
            shards=sql.Literal(area.shards),
            where=all_of(area.predicate, narrow),
            most=ALLOWED_ROWS + 1,
        )
        for area in areas
    ]
    found = await (
        await connection.execute(UNION.join(branches), {**identity(tenant), **values}, binary=True)
    ).fetchall()
    if len(found) > ALLOWED_ROWS:
        return None
    return np.array([row["chunk_no"] for row in found], np.uint32)


async def _candidates(
    connection: Connection, tenant: Tenant, areas: Iterable[Area], wanted: _Wanted
) -> list[Candidate]:
    """Returns what is different, best first; what was deleted since it was indexed has no row any more."""
    chunks, scores = wanted.scored.chunks, wanted.scored.scores
    narrow, values = conditions(wanted.filters)
    branches = [
        ROWS.format(shards=sql.Literal(area.shards), where=all_of(area.predicate, narrow))
        for area in areas
    ]
    statement = DIFFERENT.format(chunks=UNION.join(branches))
    for depth in depths(wanted.limit):
        looked_at = {"chunks": chunks[:depth], "scores": scores[:depth], "limit": wanted.limit}
        rows = await (
            await connection.execute(statement, {**identity(tenant), **values, **looked_at})
        ).fetchall()
        if depth >= len(chunks) or are_enough(rows, wanted.limit):
            break
    return candidates_of(rows)
