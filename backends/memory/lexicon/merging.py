"""The postings of an area as rows: new terms are merged into them, deleted chunks swept out.

Postings have two levels. Terms are appended to the buckets of level 1; when level 1 has grown, its
records are appended to level 2, which has more buckets and is written rarely. Each function runs in
the caller's transaction, which holds the area's lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
from psycopg import sql

from backends.memory.areas import Connection, predicate_of
from backends.memory.lexicon.postings import (
    BUCKET_BITS,
    SUMMARY_BUCKET,
    Records,
    in_order,
    in_slices,
    keep,
    measure,
    pack_summary,
    read_summaries,
    unpack,
)
from contracts.memory.ports import Area

MERGE_AT_ONCE = 4_096
LEVEL_UP_ABOVE = 4_096
LEVEL_UP_PART = 0.2
"""Level 1 moves to level 2 when it has this part of its chunks, so level 2 is rewritten rarely."""
BUCKETS_AT_ONCE = 256
RECORDS_AT_ONCE = 400_000
"""Records in a statement that appends, about 4 MB."""

TAKE_TERMS = """
WITH first AS MATERIALIZED (
    SELECT chunk_no FROM memory_terms
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s ORDER BY chunk_no LIMIT %(most)s
)
DELETE FROM memory_terms AS term USING first
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND term.chunk_no = first.chunk_no
RETURNING terms
"""
APPEND = """
INSERT INTO memory_postings AS kept (microdao_id, agent_id, level, bucket, data)
SELECT %(microdao_id)s, %(agent_id)s, %(level)s, bucket, data
FROM unnest(%(buckets)s::integer[], %(data)b::bytea[]) AS added (bucket, data)
ON CONFLICT (microdao_id, agent_id, level, bucket) DO UPDATE SET data = kept.data || excluded.data
"""
REPLACE = """
UPDATE memory_postings AS kept SET data = changed.data
FROM unnest(%(buckets)s::integer[], %(data)b::bytea[]) AS changed (bucket, data)
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND level = %(level)s
  AND kept.bucket = changed.bucket
"""
READ = """
SELECT bucket, data FROM memory_postings
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND level = %(level)s
  AND bucket BETWEEN %(first)s AND %(last)s
"""
DROP = """
DELETE FROM memory_postings WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""
DROP_LEVEL = """
DELETE FROM memory_postings
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND level = %(level)s
"""
ALIVE = sql.SQL("SELECT DISTINCT chunk_no FROM agent_memories WHERE {area}")
REMAINING = """
UPDATE memory_areas SET unmerged = (
    SELECT count(*) FROM memory_terms
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
) WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""
SWEPT = """
UPDATE memory_areas SET removed = 0 WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
"""


async def merge(connection: Connection, area: Area) -> None:
    """Moves the area's terms to level 1, then level 1 to level 2 if that is due."""
    while await _merge_terms(connection, area):
        pass
    await _level_up(connection, area)
    await connection.execute(REMAINING, area.identity)


async def replace(
    connection: Connection, area: Area, parts: Sequence[tuple[Records, Records]]
) -> None:
    """Replaces the area's postings by `parts`, on the level for an area of their size.

    Each part is what `in_order` returns for other chunks.
    """
    await connection.execute(DROP, area.identity)
    if chunks := sum(len(heads) for _, heads in parts):
        await _append(connection, area, 1 if chunks <= LEVEL_UP_ABOVE else 2, parts)


async def sweep(connection: Connection, area: Area) -> None:
    """Removes the records of deleted chunks from both levels."""
    rows = await (
        await connection.execute(ALIVE.format(area=predicate_of(area)), area.identity, binary=True)
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
        records = unpack(b"".join(bytes(row["terms"]) for row in taken))
        await _append(connection, area, 1, [await asyncio.to_thread(in_order, records)])
    return len(taken) == MERGE_AT_ONCE


async def _level_up(connection: Connection, area: Area) -> None:
    first, second = await _chunks(connection, area, 1), await _chunks(connection, area, 2)
    if first <= max(LEVEL_UP_ABOVE, LEVEL_UP_PART * second):
        return
    records = np.concatenate(
        list((await _read(connection, area, 1, 0, 1 << BUCKET_BITS[1])).values())
    )
    await connection.execute(DROP_LEVEL, {**area.identity, "level": 1})
    await _append(connection, area, 2, [await asyncio.to_thread(in_order, records)])


async def _append(
    connection: Connection, area: Area, level: int, parts: Sequence[tuple[Records, Records]]
) -> None:
    """Appends slice by slice: the whole would be in memory several times, and stop the loop."""
    slices = in_slices([ordered for ordered, _ in parts], level, RECORDS_AT_ONCE)
    while (buckets := await asyncio.to_thread(next, slices, None)) is not None:
        await connection.execute(APPEND, {**_columns(buckets), **area.identity, "level": level})
    size = measure(np.concatenate([heads for _, heads in parts]))
    summary = {"buckets": [SUMMARY_BUCKET], "data": [pack_summary(*size)]}
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
