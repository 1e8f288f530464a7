"""Counts of what is stored, area by area: row security shows the contents of one at a time."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import orjson

from backends.memory.areas import background_rows
from backends.postgres.pool import Database, PostgresAdapter
from contracts.deadline import Deadline
from contracts.errors import DeadlineExceeded, InvalidRequest
from contracts.identity import Page
from contracts.memory.ports import Area
from contracts.memory.stats import AgentStats, StatsFilter, TierStats
from contracts.values import storable

TIMEOUT_S = 10.0
"""Of a whole page. Counting 100,000 memories of one agent takes a third of a second."""
AT_ONCE = 2
"""Pages that are counted at a time, so that most connections stay free for queries."""

AREAS = """
SELECT microdao_id, agent_id, shard, waiting, oldest
FROM memory_areas AS area CROSS JOIN LATERAL (
    SELECT count(*) AS waiting, min(chunk_no) AS oldest FROM memory_queue AS queue
    WHERE queue.microdao_id = area.microdao_id AND queue.agent_id = area.agent_id
) AS queued
WHERE (%(microdao_id)s::text IS NULL OR microdao_id IN (%(microdao_id)s, ''))
  AND (%(agent_id)s::text IS NULL OR agent_id IN (%(agent_id)s, ''))
  AND (microdao_id, agent_id) >= (%(from_microdao)s, %(from_agent)s)
ORDER BY microdao_id, agent_id LIMIT %(rows)s
"""
# A chunk has a row for each model version while its memory is embedded anew: one of them counts.
TIERS = """
WITH stored AS (
    SELECT 'short-term' AS tier, kind, created_at, recorded_at AS at FROM memory_events
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
    UNION ALL
    SELECT 'mid-term', kind, created_at, stored_at FROM memories
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
    UNION ALL
    SELECT 'long-term', 'kb', indexed_at, indexed_at FROM kb_documents
    WHERE microdao_id = %(microdao_id)s AND %(agent_id)s = ''
), counted AS (
    SELECT tier, kind, count(*) AS count, min(created_at) AS first, max(created_at) AS latest,
           count(*) FILTER (WHERE at > now() - interval '24 hours') AS last_24h,
           count(*) FILTER (WHERE at > now() - interval '7 days') AS last_7d,
           count(*) FILTER (WHERE at > now() - interval '30 days') AS last_30d
    FROM stored GROUP BY tier, kind
), chunk AS (
    SELECT kind, count(*) AS chunks, sum(octet_length(content)) AS text_bytes FROM agent_memories
    WHERE shard = ANY(%(shards)s) AND microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
      AND model_version IN ('', (SELECT model_version FROM memory_spaces WHERE searched))
    GROUP BY kind
)
SELECT counted.*, coalesce(chunks, 0) AS chunks, coalesce(text_bytes, 0) AS text_bytes
FROM counted LEFT JOIN chunk ON chunk.kind = counted.kind AND tier <> 'short-term'
ORDER BY tier, kind
"""
AGE = """
SELECT extract(epoch FROM now() - coalesce(memory.stored_at, document.indexed_at))::float8 AS s
FROM agent_memories AS chunk
LEFT JOIN memories AS memory ON memory.microdao_id = %(microdao_id)s
     AND memory.agent_id = %(agent_id)s AND memory.id = chunk.id
LEFT JOIN kb_documents AS document ON document.id = chunk.document_id
WHERE chunk.shard = 0 AND chunk.microdao_id = %(microdao_id)s AND chunk.agent_id = %(agent_id)s
  AND chunk.chunk_no = %(oldest)s
"""


class Statistics(PostgresAdapter):
    """Implements StatsReader."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def page(self, wanted: StatsFilter) -> Page[AgentStats]:
        deadline = Deadline.after(TIMEOUT_S)
        async with self._slots:
            return await self._page(wanted, deadline)

    async def _page(self, wanted: StatsFilter, deadline: Deadline) -> Page[AgentStats]:
        microdao_id, agent_id = _read(wanted.cursor)
        values = {
            **wanted.model_dump(include={"microdao_id", "agent_id"}),
            "from_microdao": microdao_id,
            "from_agent": agent_id,
            "rows": wanted.limit + 1,
        }
        try:
            deadline.check()
            areas = await background_rows(
                self._database, AREAS, values, timeout_s=deadline.remaining()
            )
            items = [await self._counted(area, deadline) for area in areas[: wanted.limit]]
        except DeadlineExceeded:
            raise DeadlineExceeded(
                f"counting took more than {TIMEOUT_S:g} s: give `agent_id`, or a smaller `limit`"
            ) from None
        cursors = [_written(area) for area in areas[wanted.limit :]]
        return Page(items=items, next_cursor=cursors[0] if cursors else None)

    async def _counted(self, row: Mapping[str, Any], deadline: Deadline) -> AgentStats:
        deadline.check()
        area = Area(row["microdao_id"], row["agent_id"], row["shard"])
        values = {**area.identity, "shards": area.shards, "oldest": row["oldest"]}
        tiers = await background_rows(
            self._database, TIERS, values, area, timeout_s=deadline.remaining()
        )
        ages = []
        if row["waiting"]:
            deadline.check()
            ages = await background_rows(
                self._database, AGE, values, area, timeout_s=deadline.remaining()
            )
        return AgentStats(
            microdao_id=area.microdao_id or None,
            agent_id=area.agent_id or None,
            waiting=row["waiting"],
            oldest_waiting_s=ages[0]["s"] if ages else None,
            tiers=[TierStats(**tier) for tier in tiers],
        )


def _written(area: Mapping[str, Any]) -> str:
    """Returns the cursor of the page that begins with this area."""
    key = orjson.dumps([area["microdao_id"], area["agent_id"]])
    return base64.urlsafe_b64encode(key).decode()


def _read(cursor: str | None) -> tuple[str, str]:
    """Returns microDAO and agent that the page begins with; both empty are the first of all."""
    if cursor is None:
        return "", ""
    try:
        microdao_id, agent_id = orjson.loads(base64.urlsafe_b64decode(cursor))
        return storable(microdao_id), storable(agent_id)
    except (ValueError, TypeError) as error:
        raise InvalidRequest("cursor is not one that this query gave") from error
