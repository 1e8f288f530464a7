"""Makes an area's lexical terms anew from its chunks, after the way in which texts are cut into terms has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql

from backends.memory.areas import Area, Connection, lock, working
from backends.memory.lexicon.postings import Records, keep, pack_terms, unpack
from backends.postgres.pool import Database

CHUNKS_AT_ONCE = 500
TIMEOUT_S = 60.0

READ = sql.SQL(
    "SELECT chunk_no, content FROM agent_memories WHERE {area} AND chunk_no > %(after)s ORDER BY chunk_no LIMIT %(most)s"
)
ALIVE = sql.SQL("SELECT chunk_no FROM agent_memories WHERE {area}")
HAS_POSTINGS = "SELECT FROM memory_postings WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s LIMIT 1"
DROP_POSTINGS = (
    "DELETE FROM memory_postings WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s"
)
DROP_TERMS = "DELETE FROM memory_terms WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND chunk_no = ANY(%(chunks)s)"
DONE = """
UPDATE memory_areas SET lexicon = %(lexicon)s, removed = CASE WHEN %(swept)s THEN 0 ELSE removed END
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""


@dataclass(frozen=True)
class Spelling:
    """How texts are cut into terms: the function, and a fingerprint that changes with what it does."""

    grams: Callable[[str], Mapping[str, int]]
    fingerprint: str


async def rebuild(
    database: Database,
    area: Area,
    spelling: Spelling,
    append: Callable[[Connection, Area, Records], Any],
) -> int | None:
    """Replaces the area's postings and terms; returns the number of chunks, None when there was nothing to replace.

    The terms are made between transactions, so that nobody waits for that; what is stored meanwhile has terms already.
    `append` files records in the postings. An area that has never been merged was written by this code and is only marked.
    """
    async with working(database, area) as connection:
        if await (await connection.execute(HAS_POSTINGS, area.identity)).fetchone() is None:
            await connection.execute(
                DONE, {**area.identity, "lexicon": spelling.fingerprint, "swept": False}
            )
            return None
    parts: list[bytes] = []
    chunks: list[int] = []
    while True:
        async with working(database, area, timeout_s=TIMEOUT_S) as connection:
            values = {
                **area.identity,
                "after": chunks[-1] if chunks else -1,
                "most": CHUNKS_AT_ONCE,
            }
            rows = await (
                await connection.execute(READ.format(area=area.predicate), values)
            ).fetchall()
        if not rows:
            break
        parts.append(await asyncio.to_thread(_terms, rows, spelling))
        chunks += [row["chunk_no"] for row in rows]
    async with working(database, area, timeout_s=TIMEOUT_S) as connection:
        await lock(connection, area)
        alive = await (
            await connection.execute(ALIVE.format(area=area.predicate), area.identity)
        ).fetchall()
        await connection.execute(DROP_POSTINGS, area.identity)
        await connection.execute(DROP_TERMS, {**area.identity, "chunks": chunks})
        records = keep(
            unpack(b"".join(parts)), np.array([row["chunk_no"] for row in alive], np.uint32)
        )
        await append(connection, area, records)
        await connection.execute(
            DONE, {**area.identity, "lexicon": spelling.fingerprint, "swept": True}
        )
    return len(chunks)


def _terms(rows: Sequence[Mapping[str, Any]], spelling: Spelling) -> bytes:
    return b"".join(pack_terms(row["chunk_no"], spelling.grams(row["content"])) for row in rows)
