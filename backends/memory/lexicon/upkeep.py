"""Merges new terms into the postings of an area, takes out what was deleted, and spells anew what an older version wrote."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from psycopg import sql

from backends.memory.areas import Area, Connection, lock, working
from backends.memory.lexicon.postings import (
    BUCKET_BITS,
    SUMMARY_BUCKET,
    Records,
    keep,
    measure,
    pack_summary,
    read_summaries,
    split,
    unpack,
)
from backends.memory.lexicon.rebuild import Spelling, rebuild
from backends.postgres.pool import Database
from contracts.events import EventLog

MERGE_ABOVE = 256
"""Chunks that lie unmerged; a question reads them all."""
MERGE_AT_ONCE = 4_096
LEVEL_UP_ABOVE = 4_096
LEVEL_UP_PART = 0.2
"""Level 1 goes into level 2 when it has this part of level 2's chunks: so level 2 is rewritten rarely."""
SWEEP_ABOVE = 1_000
SWEEP_ALL_EVERY_S = 86_400.0
"""However few chunks of an area were deleted, their hashed terms leave the postings within a day."""
BUCKETS_AT_ONCE = 256
TIMEOUT_S = 60.0

DUE = """
SELECT microdao_id, agent_id, shard, removed, lexicon FROM memory_areas AS area
WHERE lexicon <> %(lexicon)s OR unmerged > %(merge)s OR removed > %(sweep)s OR %(merge)s < (
    -- While the embedder is away the counter stands still, but terms pile up.
    SELECT count(*) FROM (
        SELECT FROM memory_queue AS queue
        WHERE queue.microdao_id = area.microdao_id AND queue.agent_id = area.agent_id LIMIT %(merge)s + 1
    ) AS waiting
) LIMIT 100
"""
TAKE_TERMS = """
WITH first AS MATERIALIZED (
    SELECT chunk_no FROM memory_terms WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s ORDER BY chunk_no LIMIT %(most)s
)
DELETE FROM memory_terms AS term USING first
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND term.chunk_no = first.chunk_no RETURNING terms
"""
APPEND = """
INSERT INTO memory_postings AS kept (microdao_id, agent_id, level, bucket, data)
SELECT %(microdao_id)s, %(agent_id)s, %(level)s, bucket, data FROM unnest(%(buckets)s::integer[], %(data)b::bytea[]) AS added (bucket, data)
ON CONFLICT (microdao_id, agent_id, level, bucket) DO UPDATE SET data = kept.data || excluded.data
"""
REPLACE = """
UPDATE memory_postings AS kept SET data = changed.data
FROM unnest(%(buckets)s::integer[], %(data)b::bytea[]) AS changed (bucket, data)
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND level = %(level)s AND kept.bucket = changed.bucket
"""
READ = """
SELECT bucket, data FROM memory_postings
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND level = %(level)s AND bucket BETWEEN %(first)s AND %(last)s
"""
DROP_LEVEL = "DELETE FROM memory_postings WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND level = %(level)s"
ALIVE = sql.SQL("SELECT DISTINCT chunk_no FROM agent_memories WHERE {area}")
REMAINING = """
UPDATE memory_areas SET unmerged = (
    SELECT count(*) FROM memory_terms WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
) WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""
SWEPT = "UPDATE memory_areas SET removed = 0 WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s"


class LexiconUpkeep:
    """Implements Upkeep: each due area in a transaction of its own, under the area's lock."""

    name = "lexicon"

    def __init__(
        self, database: Database, events: EventLog, spelling: Spelling, interval_s: float = 1.0
    ) -> None:
        self._database = database
        self._events = events
        self._spelling = spelling
        self._swept_all_at: float | None = None
        self.interval_s = interval_s

    async def run(self) -> None:
        """Spells anew, merges and sweeps what is due. Once a day, and at the start, whatever was deleted is due."""
        sweep_all = (
            self._swept_all_at is None or time.monotonic() - self._swept_all_at > SWEEP_ALL_EVERY_S
        )
        sweep_above = 0 if sweep_all else SWEEP_ABOVE
        values = {"merge": MERGE_ABOVE, "sweep": sweep_above, "lexicon": self._spelling.fingerprint}
        async with working(self._database) as connection:
            due = await (await connection.execute(DUE, values)).fetchall()
        for row in due:
            area = Area(row["microdao_id"], row["agent_id"], row["shard"])
            if row["lexicon"] != self._spelling.fingerprint:
                await self.spell_anew(area)
            await self.merge(area)
            if row["removed"] > sweep_above:
                await self.sweep(area)
        if sweep_all and not any(row["removed"] for row in due):  # else there may be more of them
            self._swept_all_at = time.monotonic()

    async def spell_anew(self, area: Area) -> None:
        """Makes the area's terms anew if another version of the code made them."""
        chunks = await rebuild(self._database, area, self._spelling, _append_all)
        if chunks is not None:
            self._events.emit(
                "memory.lexicon_rebuilt",
                microdao_id=area.microdao_id,
                agent_id=area.agent_id,
                chunks=chunks,
            )

    async def merge(self, area: Area) -> None:
        """Merges the area's terms, then level 1 into level 2 when that is due."""
        async with working(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            while await _merge_terms(connection, area):
                pass
            await _level_up(connection, area)
            await connection.execute(REMAINING, area.identity)

    async def sweep(self, area: Area) -> None:
        """Takes the records of deleted chunks out of the area's postings."""
        async with working(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            await sweep(connection, area)
        self._events.emit(
            "memory.postings_swept", microdao_id=area.microdao_id, agent_id=area.agent_id
        )


async def sweep(connection: Connection, area: Area) -> None:
    """Does so within the caller's transaction, which holds the area's lock."""
    rows = await (
        await connection.execute(ALIVE.format(area=area.predicate), area.identity, binary=True)
    ).fetchall()
    alive = np.array([row["chunk_no"] for row in rows], np.uint32)
    for level, bits in BUCKET_BITS.items():
        seen: dict[int, int] = {}
        for first in range(0, 1 << bits, BUCKETS_AT_ONCE):
            held = await _read(connection, area, level, first)
            kept = {bucket: keep(records, alive) for bucket, records in held.items()}
            changed = {
                bucket: records
                for bucket, records in kept.items()
                if len(records) != len(held[bucket])
            }
            if changed:
                await connection.execute(
                    REPLACE, {**_columns(changed), **area.identity, "level": level}
                )
            for records in kept.values():
                seen.update(zip(records["chunk"].tolist(), records["length"].tolist(), strict=True))
        summary = {
            "buckets": [SUMMARY_BUCKET],
            "data": [pack_summary(len(seen), sum(seen.values()))],
        }
        await connection.execute(REPLACE, {**summary, **area.identity, "level": level})
    await connection.execute(SWEPT, area.identity)


async def _merge_terms(connection: Connection, area: Area) -> bool:
    """Moves terms to level 1; returns whether there may be more."""
    taken = await (
        await connection.execute(TAKE_TERMS, {**area.identity, "most": MERGE_AT_ONCE}, binary=True)
    ).fetchall()
    if taken:
        await _append(connection, area, 1, unpack(b"".join(bytes(row["terms"]) for row in taken)))
    return len(taken) == MERGE_AT_ONCE


async def _level_up(connection: Connection, area: Area) -> None:
    first, second = await _chunks(connection, area, 1), await _chunks(connection, area, 2)
    if first <= max(LEVEL_UP_ABOVE, LEVEL_UP_PART * second):
        return
    records = np.concatenate(
        list((await _read(connection, area, 1, 0, 1 << BUCKET_BITS[1])).values())
    )
    await connection.execute(DROP_LEVEL, {**area.identity, "level": 1})
    await _append(connection, area, 2, records)


async def _append_all(connection: Connection, area: Area, records: Records) -> None:
    """Files records where an area of their size has them."""
    if len(records):
        await _append(connection, area, 1 if measure(records)[0] <= LEVEL_UP_ABOVE else 2, records)


async def _append(connection: Connection, area: Area, level: int, records: Records) -> None:
    await connection.execute(
        APPEND, {**_columns(split(records, level)), **area.identity, "level": level}
    )
    summary = {"buckets": [SUMMARY_BUCKET], "data": [pack_summary(*measure(records))]}
    await connection.execute(APPEND, {**summary, **area.identity, "level": level})


async def _read(
    connection: Connection, area: Area, level: int, first: int, count: int = BUCKETS_AT_ONCE
) -> dict[int, Records]:
    values = {**area.identity, "level": level, "first": first, "last": first + count - 1}
    rows = await (await connection.execute(READ, values, binary=True)).fetchall()
    return {row["bucket"]: unpack(bytes(row["data"])) for row in rows}


async def _chunks(connection: Connection, area: Area, level: int) -> int:
    values = {**area.identity, "level": level, "first": SUMMARY_BUCKET, "last": SUMMARY_BUCKET}
    rows = await (await connection.execute(READ, values, binary=True)).fetchall()
    return read_summaries([bytes(row["data"]) for row in rows])[0]


def _columns(buckets: Mapping[int, Records]) -> dict[str, list[int] | list[bytes]]:
    return {"buckets": list(buckets), "data": [records.tobytes() for records in buckets.values()]}
