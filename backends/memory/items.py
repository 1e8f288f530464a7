"""Items of a search's candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql

from backends.memory.areas import array_of, identity, predicate_of, tenant_rows
from backends.postgres.pool import PostgresAdapter
from contracts.memory.api import Item
from contracts.memory.items import described, origin_of, source_of
from contracts.memory.ports import SearchScope

# A chunk with vectors of two model versions has two rows, equal in these columns.
BY_NUMBER = sql.SQL("""
(SELECT DISTINCT ON (chunk_no) id, part, agent_id, kind, channel_id, created_at, content, meta
 FROM agent_memories
 WHERE shard = ANY({shards}) AND {area} AND chunk_no = ANY(%(numbers)s::bigint[]))
""")
BY_ID = sql.SQL("""
(SELECT DISTINCT ON (id) id, part, agent_id, kind, channel_id, created_at, content, meta
 FROM agent_memories
 WHERE shard = ANY({shards}) AND {area} AND id = ANY(%(ids)s) AND part = 0)
""")


class Items(PostgresAdapter):
    """Implements ItemReader."""

    async def read(self, scope: SearchScope, chunks: Mapping[str, int]) -> dict[str, Item]:
        numbers = [chunk for chunk in chunks.values() if chunk]
        ids = [item for item, chunk in chunks.items() if not chunk]
        wanted = [template for template, given in ((BY_NUMBER, numbers), (BY_ID, ids)) if given]
        if not wanted:
            return {}
        statement = sql.SQL(" UNION ALL ").join(
            template.format(shards=sql.Literal(area.shards), area=predicate_of(area))
            for template in wanted
            for area in scope.areas
        )
        values = {**identity(scope.tenant), "numbers": array_of(numbers), "ids": ids}
        rows = await tenant_rows(self._database, scope.tenant, statement, values)
        return {row["id"]: _item(row) for row in rows}


def _item(row: Mapping[str, Any]) -> Item:
    if row["agent_id"]:
        source = source_of(row["channel_id"])
        origin = origin_of(row["id"], "mid-term", row["channel_id"], row["part"])
    else:
        source = f"kb:{row['meta'].get('path', '')}"
        origin = origin_of(row["id"], "long-term", None)
    meta = described(row["meta"], source=source, created_at=row["created_at"], origin=origin)
    return Item(id=row["id"], kind=row["kind"], content=row["content"], meta=meta)
