"""Lexical search in PostgreSQL: BM25 over all of a tenant's chunks, exact at any size.

A new chunk's terms are in `memory_terms` and are searched there at once. Upkeep merges them
into the buckets of `memory_postings` (merging.py). A search reads the buckets of the question's
grams and lemmas, and all terms that are not merged yet; grams and lemmas are scored apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from backends.memory.areas import (
    Connection,
    all_of,
    array_of,
    conditions,
    identity,
    predicate_of,
    tenant_rows,
    tenant_transaction,
)
from backends.memory.candidates import DEEPEST, DISTINCT_ITEMS, are_enough, candidates_of, depths
from backends.memory.lexicon.grams import grams
from backends.memory.lexicon.lemmas import lemmas
from backends.memory.lexicon.postings import (
    BUCKET_BITS,
    SUMMARY_BUCKET,
    bucket_of,
    measure,
    read_summaries,
    unpack,
)
from backends.memory.lexicon.scoring import Scored, score
from backends.postgres.pool import PostgresAdapter
from contracts.memory.ports import Filters, ItemCandidate, LexicalAnswer, SearchScope

MAX_GRAMS = 128
"""Grams of a question that are looked up; the rest of a longer question is ignored."""
MAX_WORDS = 32
"""Different words of a question whose lemmas are looked up."""
WORD_CANDIDATES = 20
"""Items by lemmas, at most. Fusion counts those better than the tenth, and at least half come."""
ALLOWED_ROWS = 20_000
"""Filters are applied before scoring while at most this many chunks pass, else afterwards."""
TIMEOUT_S = 4.0
THREAD_ABOVE_BYTES = 256 << 10
BUDGET_BYTES = 2 << 20
"""Postings read per area, about 190,000. The smallest buckets come first: terms over the budget are
in so many chunks that they distinguish little."""

UNMERGED_LEVEL = 0
"""Below the levels of merged postings, see `BUCKET_BITS`."""

UNMERGED = sql.SQL(
    "SELECT 0::smallint AS level, 0 AS bucket, terms AS data FROM memory_terms WHERE {area}"
)
# The smallest buckets first, until the budget is spent. Buckets over it come without their data,
# which PostgreSQL does not even read.
MERGED = sql.SQL("""
SELECT level, bucket, CASE WHEN before < {budget} THEN data END AS data FROM (
    SELECT level, bucket, data,
           sum(octet_length(data)) OVER (ORDER BY octet_length(data), level, bucket)
               - octet_length(data) AS before
    FROM memory_postings
    WHERE {area} AND (level = 1 AND bucket = ANY({first}) OR level = 2 AND bucket = ANY({second}))
) AS sized
""")
ALLOWED = sql.SQL(
    "(SELECT chunk_no FROM agent_memories WHERE shard = ANY({shards}) AND {where} LIMIT {most})"
)
# The array finds the rows, the join their scores.
ROWS = sql.SQL("""
(SELECT id, kind, created_at, chunk_no, agent_id, content, scored.score
 FROM agent_memories
 JOIN unnest(%(chunks)s::bigint[], %(scores)s::float8[]) AS scored (number, score)
   ON chunk_no = number
 WHERE shard = ANY({shards}) AND chunk_no = ANY(%(chunks)s::bigint[]) AND {where})
""")
UNION = sql.SQL(" UNION ALL ")

Numbers = npt.NDArray[np.uint32]


class Lexicon(PostgresAdapter):
    """Implements LexicalIndex."""

    async def search(
        self, scope: SearchScope, filters: Filters, query: str, limit: int
    ) -> LexicalAnswer:
        """Scores between two transactions, so no connection waits for it."""
        questions = (
            dict(list(grams(query).items())[:MAX_GRAMS]),
            lemmas(query, MAX_WORDS),
        )
        if not any(questions):
            return LexicalAnswer()
        async with tenant_transaction(
            self._database, scope.tenant, timeout_s=TIMEOUT_S
        ) as connection:
            rows = await _postings(connection, scope, set().union(*questions))
            allowed = await _allowed(connection, scope, filters)
        size = sum(len(row["data"] or b"") for row in rows)
        by_grams, by_lemmas = (
            _scored(rows, questions, allowed)
            if size < THREAD_ABOVE_BYTES
            else await asyncio.to_thread(_scored, rows, questions, allowed)
        )
        if not by_grams.chunks and not by_lemmas.chunks:
            return LexicalAnswer(ceiling=by_grams.ceiling, words_ceiling=by_lemmas.ceiling)
        candidates, words = await asyncio.gather(
            self._candidates(scope, filters, by_grams, limit),
            self._candidates(scope, filters, by_lemmas, min(limit, WORD_CANDIDATES)),
        )
        return LexicalAnswer(candidates, by_grams.ceiling, words, by_lemmas.ceiling)

    async def _candidates(
        self, scope: SearchScope, filters: Filters, scored: Scored, limit: int
    ) -> list[ItemCandidate]:
        """Returns the best different items. Chunks deleted since they were indexed have no row."""
        if not scored.chunks:
            return []
        where, values = conditions(filters)
        values |= {**identity(scope.tenant), "limit": limit}
        branches = [
            ROWS.format(shards=sql.Literal(area.shards), where=all_of(predicate_of(area), where))
            for area in scope.areas
        ]
        statement = DISTINCT_ITEMS.format(chunks=UNION.join(branches))
        for depth in depths(limit):
            values |= {
                "chunks": array_of(scored.chunks[:depth]),
                "scores": array_of(scored.scores[:depth]),
            }
            rows = await tenant_rows(
                self._database, scope.tenant, statement, values, timeout_s=TIMEOUT_S
            )
            if depth >= len(scored.chunks) or are_enough(rows, limit):
                break
        return candidates_of(rows)


def _scored(
    rows: Iterable[Mapping[str, Any]],
    questions: Sequence[Mapping[str, int]],
    allowed: Numbers | None,
) -> list[Scored]:
    """Scores each question by what `_postings` read. Terms over the budget do not count."""
    unmerged: list[bytes] = []
    merged: list[bytes] = []
    summaries: list[bytes] = []
    skipped: set[tuple[int, int]] = set()
    for row in rows:
        level, bucket, data = row["level"], row["bucket"], row["data"]
        if data is None:
            skipped.add((level, bucket))
        elif level == UNMERGED_LEVEL:
            unmerged.append(bytes(data))
        elif bucket == SUMMARY_BUCKET:
            summaries.append(bytes(data))
        else:
            merged.append(bytes(data))
    fresh = unpack(b"".join(unmerged))
    fresh_chunks, fresh_length = measure(fresh)
    merged_chunks, merged_length = read_summaries(summaries)
    records = np.concatenate([fresh, unpack(b"".join(merged))])
    return [
        score(
            records,
            {
                term: count
                for term, count in question.items()
                if not any((level, bucket_of(term, level)) in skipped for level in BUCKET_BITS)
            },
            chunks=fresh_chunks + merged_chunks,
            length=fresh_length + merged_length,
            allowed=allowed,
            limit=DEEPEST,
        )
        for question in questions
    ]


async def _postings(
    connection: Connection, scope: SearchScope, terms: Iterable[str]
) -> list[dict[str, Any]]:
    """Reads the unmerged terms, and the buckets of the question's terms on both levels."""
    first, second = (
        sql.Literal([SUMMARY_BUCKET, *{bucket_of(term, level) for term in terms}])
        for level in BUCKET_BITS
    )
    branches = []
    for area in scope.areas:
        own = predicate_of(area)
        branches.append(UNMERGED.format(area=own))
        branches.append(MERGED.format(area=own, budget=BUDGET_BYTES, first=first, second=second))
    return await (
        await connection.execute(UNION.join(branches), identity(scope.tenant), binary=True)
    ).fetchall()


async def _allowed(connection: Connection, scope: SearchScope, filters: Filters) -> Numbers | None:
    """Returns the chunks that pass the filters; None if all pass, or more than ALLOWED_ROWS."""
    if not filters.is_set:
        return None
    where, values = conditions(filters)
    branches = [
        ALLOWED.format(
            shards=sql.Literal(area.shards),
            where=all_of(predicate_of(area), where),
            most=ALLOWED_ROWS + 1,
        )
        for area in scope.areas
    ]
    values |= identity(scope.tenant)
    found = await (await connection.execute(UNION.join(branches), values, binary=True)).fetchall()
    if len(found) > ALLOWED_ROWS:
        return None
    return np.array([row["chunk_no"] for row in found], np.uint32)
