"""An arm's candidates: the best chunk of each item, and one item of equal texts.

Otherwise hundreds of equal memories, or the chunks of one long document, would take every place.
An arm first reads twice as many chunks as items are wanted, then ten times as many, until these
contain half of the items wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from psycopg import sql

from contracts.memory.fields import Tier
from contracts.memory.ports import ItemCandidate

WIDER = 10
DEEPEST = 10_000
"""Chunks that are read for one question at most."""

# Of equal texts every arm takes the newest. By score each arm would take another one, because the
# scores of equal texts differ in the last bits.
DISTINCT_ITEMS = sql.SQL("""
SELECT id, kind, created_at, chunk_no, agent_id, score, read_chunks FROM (
    SELECT DISTINCT ON (content COLLATE "C") * FROM (
        SELECT DISTINCT ON (id) *, count(*) OVER () AS read_chunks FROM ({chunks}) AS chunks
        ORDER BY id, score DESC, chunk_no
    ) AS items ORDER BY content COLLATE "C", created_at DESC, id
) AS texts ORDER BY score DESC, created_at DESC LIMIT %(limit)s
""")


def depths(limit: int) -> Iterator[int]:
    """Yields the number of chunks to read for `limit` items: first, second try and so on."""
    depth = 2 * limit
    yield depth
    while depth < DEEPEST:
        depth = min(depth * WIDER, DEEPEST)
        yield depth


def are_enough(rows: Sequence[object], limit: int) -> bool:
    """Whether these are enough items to stop reading further chunks."""
    return 2 * len(rows) >= limit


def candidates_of(rows: Iterable[dict[str, Any]]) -> list[ItemCandidate]:
    """Returns the rows of DISTINCT_ITEMS as candidates."""
    return [
        ItemCandidate(
            row["id"],
            row["score"],
            row["created_at"],
            row["kind"],
            _tier(row["agent_id"]),
            row["chunk_no"],
        )
        for row in rows
    ]


def _tier(agent_id: str) -> Tier:
    return "mid-term" if agent_id else "long-term"
