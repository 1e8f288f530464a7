"""An arm's candidates: of each item its best chunk, of each text one item.

Equal memories, the chunks of a long document, and what was deleted since it was indexed would otherwise take the places
of everything else. The best chunks are looked at first, and ten times as many while they give too few items.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from psycopg import sql

from contracts.memory import Candidate, Tier

WIDER = 10
DEEPEST = 10_000
"""Chunks that are looked at for one question at most."""

# Of equal texts the newest stands for all.
DIFFERENT = sql.SQL("""
SELECT id, kind, created_at, chunk_no, agent_id, score, looked_at FROM (
    SELECT DISTINCT ON (content COLLATE "C") * FROM (
        SELECT DISTINCT ON (id) *, count(*) OVER () AS looked_at FROM ({chunks}) AS chunks ORDER BY id, score DESC, chunk_no
    ) AS items ORDER BY content COLLATE "C", score DESC, created_at DESC
) AS texts ORDER BY score DESC, created_at DESC LIMIT %(limit)s
""")


def depths(first: int) -> Iterable[int]:
    """Yields how many chunks to look at, time after time."""
    yield first
    while first < DEEPEST:
        first = min(first * WIDER, DEEPEST)
        yield first


def candidates_of(rows: Iterable[dict[str, Any]]) -> list[Candidate]:
    """Returns the rows of DIFFERENT as candidates."""
    return [Candidate(row["id"], row["score"], row["created_at"], row["kind"], _tier(row["agent_id"]), row["chunk_no"]) for row in rows]


def _tier(agent_id: str) -> Tier:
    return "mid-term" if agent_id else "long-term"
