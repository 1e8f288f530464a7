"""When the lexical index is merged, swept and rebuilt; each job is a transaction of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from psycopg import sql

from backends.memory.areas import (
    Connection,
    background_rows,
    background_transaction,
    lock,
    predicate_of,
)
from backends.memory.lexicon import merging
from backends.memory.lexicon.postings import Records, in_order, keep, pack_terms, unpack
from backends.memory.lexicon.terms import fingerprint, terms
from backends.postgres.pool import Database
from contracts.events import EventLog
from contracts.memory.ports import Area

MERGE_ABOVE = 256
"""Unmerged chunks of an area; a search reads the terms of all of them."""
SWEEP_ABOVE = 1_000
SWEEP_ALL_EVERY_S = 86_400.0
"""However few chunks of an area were deleted, their terms leave the postings within a day."""
CHUNKS_AT_ONCE = 500
TIMEOUT_S = 60.0

DUE = """
SELECT microdao_id, agent_id, shard, removed, lexicon FROM memory_areas AS area
WHERE lexicon <> %(lexicon)s OR unmerged > %(unmerged)s OR removed > %(removed)s OR %(unmerged)s < (
    -- While the embedder is unavailable the counter does not change, but terms accumulate.
    SELECT count(*) FROM (
        SELECT FROM memory_queue AS queue
        WHERE queue.microdao_id = area.microdao_id AND queue.agent_id = area.agent_id
        LIMIT %(unmerged)s + 1
    ) AS waiting
) LIMIT 100
"""
# A chunk has a row for each model version that it was embedded with.
READ = sql.SQL("""
SELECT DISTINCT ON (chunk_no) chunk_no, content FROM agent_memories
WHERE {area} AND chunk_no > %(after)s ORDER BY chunk_no LIMIT %(most)s
""")
ALIVE = sql.SQL("SELECT chunk_no FROM agent_memories WHERE {area}")
HAS_POSTINGS = """
SELECT FROM memory_postings
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s LIMIT 1
"""
DROP_TERMS = """
DELETE FROM memory_terms
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND chunk_no = ANY(%(chunks)s)
"""
REBUILT = """
UPDATE memory_areas SET lexicon = %(lexicon)s, removed = CASE WHEN %(swept)s THEN 0 ELSE removed END
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""


class LexiconUpkeep:
    """Implements Upkeep."""

    name = "lexicon"

    def __init__(self, database: Database, events: EventLog, interval_s: float = 1.0) -> None:
        self._database = database
        self._events = events
        self._fingerprint = fingerprint()
        self._swept_all_at: float | None = None
        self.interval_s = interval_s

    async def run(self) -> None:
        """Rebuilds, merges and sweeps the areas that are due.

        Once a day, and at the start, every area with a deleted chunk is due. An area whose texts
        another version of the code cut into terms is rebuilt.
        """
        now = time.monotonic()
        sweep_all = self._swept_all_at is None or now - self._swept_all_at > SWEEP_ALL_EVERY_S
        sweep_above = 0 if sweep_all else SWEEP_ABOVE
        values = {"unmerged": MERGE_ABOVE, "removed": sweep_above, "lexicon": self._fingerprint}
        due = await background_rows(self._database, DUE, values)
        for row in due:
            area = Area(row["microdao_id"], row["agent_id"], row["shard"])
            is_older = row["lexicon"] != self._fingerprint
            if is_older and (chunks := await self._rebuild(area)) is not None:
                self._events.emit("memory.lexicon_rebuilt", **area.identity, chunks=chunks)
            await self.locked(area, merging.merge)
            if row["removed"] > sweep_above:
                await self.locked(area, merging.sweep)
                self._events.emit("memory.postings_swept", **area.identity)
        # The statement returns a bounded number of areas: more may have deleted chunks.
        if sweep_all and not any(row["removed"] for row in due):
            self._swept_all_at = now

    async def locked(self, area: Area, job: Callable[[Connection, Area], Awaitable[None]]) -> None:
        """Runs a job of `merging` in a transaction that locks the area."""
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            await job(connection, area)

    async def _rebuild(self, area: Area) -> int | None:
        """Rebuilds the area's terms; returns the number of chunks, None without postings.

        The terms are made between transactions, so nobody waits for that. Chunks stored meanwhile
        have new terms already. An area that was never merged was written by this version: it is
        only marked.
        """
        if not await self._has_postings(area):
            return None
        parts: list[tuple[Records, Records]] = []
        chunks: list[int] = []
        while rows := await self._chunks(area, chunks[-1] if chunks else -1):
            parts.append(await asyncio.to_thread(_terms, rows))
            chunks += [row["chunk_no"] for row in rows]
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            alive = await (
                await connection.execute(ALIVE.format(area=predicate_of(area)), area.identity)
            ).fetchall()
            await connection.execute(DROP_TERMS, {**area.identity, "chunks": chunks})
            numbers = np.array([row["chunk_no"] for row in alive], np.uint32)
            for place, (ordered, heads) in enumerate(parts):
                kept = await asyncio.to_thread(keep, ordered, numbers)
                parts[place] = kept, keep(heads, numbers)
            await merging.replace(connection, area, parts)
            values = {**area.identity, "lexicon": self._fingerprint, "swept": True}
            await connection.execute(REBUILT, values)
        return len(chunks)

    async def _has_postings(self, area: Area) -> bool:
        """Whether the area was merged before; records the fingerprint if not."""
        async with background_transaction(self._database, area) as connection:
            if await (await connection.execute(HAS_POSTINGS, area.identity)).fetchone() is not None:
                return True
            values = {**area.identity, "lexicon": self._fingerprint, "swept": False}
            await connection.execute(REBUILT, values)
        return False

    async def _chunks(self, area: Area, after: int) -> list[dict[str, Any]]:
        values = {**area.identity, "after": after, "most": CHUNKS_AT_ONCE}
        statement = READ.format(area=predicate_of(area))
        return await background_rows(self._database, statement, values, area, timeout_s=TIMEOUT_S)


def _terms(rows: Sequence[Mapping[str, Any]]) -> tuple[Records, Records]:
    packed = (pack_terms(row["chunk_no"], terms(row["content"])) for row in rows)
    return in_order(unpack(b"".join(packed)))
