"""An arm's candidates: of each item its best chunk, of each text one item.

Equal memories, the chunks of a long document, and what was deleted since it was indexed would otherwise take the places
of everything else. Twice as many chunks as items wanted are looked at, and ten times as many again while these hold less
than half of the items wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from psycopg import sql

from contracts.memory.api import Candidate, Tier

WIDER = 10
DEEPEST = 10_000
"""Chunks that are looked at for one question at most."""

# Of equal texts the newest stands for all, in every arm. Their scores differ in the last bits, by
# which each arm would take another one.
DIFFERENT = sql.SQL("""
SELECT id, kind, created_at, chunk_no, agent_id, score, looked_at FROM (
    SELECT DISTINCT ON (content COLLATE "C") * FROM (
        SELECT DISTINCT ON (id) *, count(*) OVER () AS looked_at FROM ({chunks}) AS chunks ORDER BY id, score DESC, chunk_no
    ) AS items ORDER BY content COLLATE "C", created_at DESC, id
) AS texts ORDER BY score DESC, created_at DESC LIMIT %(limit)s
""")


def depths(limit: int) -> Iterator[int]:
    """Yields how many chunks to look at for `limit` items, time after time."""
    depth = 2 * limit
    yield depth
    while depth < DEEPEST:
        depth = min(depth * WIDER, DEEPEST)
        yield depth


def are_enough(rows: Sequence[object], limit: int) -> bool:
    """Whether no further chunks need to be looked at for `limit` items."""
    return 2 * len(rows) >= limit


def candidates_of(rows: Iterable[dict[str, Any]]) -> list[Candidate]:
    """Returns the rows of DIFFERENT as candidates."""
    return [
        Candidate(
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
