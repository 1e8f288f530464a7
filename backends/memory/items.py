"""Reads the items that a search found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql

from backends.memory.areas import identity, of_tenant, seen_by
from backends.postgres.pool import Database
from contracts.identity import Tenant
from contracts.memory.api import Item
from contracts.memory.items import described, origin_of, source_of

# Of a chunk that has vectors of two model versions, either row will do.
BY_NUMBER = sql.SQL("""
(SELECT DISTINCT ON (chunk_no) id, part, agent_id, kind, channel_id, created_at, content, meta FROM agent_memories
 WHERE shard = ANY({shards}) AND {area} AND chunk_no = ANY(%(numbers)s))
""")
BY_ID = sql.SQL("""
(SELECT DISTINCT ON (id) id, part, agent_id, kind, channel_id, created_at, content, meta FROM agent_memories
 WHERE shard = ANY({shards}) AND {area} AND id = ANY(%(ids)s) AND part = 0)
""")


class Items:
    """Implements ItemReader."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, tenant: Tenant, chunks: Mapping[str, int]) -> dict[str, Item]:
        """See the port."""
        numbers = [chunk for chunk in chunks.values() if chunk]
        ids = [item for item, chunk in chunks.items() if not chunk]
        async with of_tenant(self._database, tenant) as connection:
            areas = await seen_by(connection, tenant)
            wanted = [
                template for template, values in ((BY_NUMBER, numbers), (BY_ID, ids)) if values
            ]
            branches = [
                template.format(shards=sql.Literal(area.shards), area=area.predicate)
                for template in wanted
                for area in areas
            ]
            if not branches:
                return {}
            statement = sql.SQL(" UNION ALL ").join(branches)
            rows = await (
                await connection.execute(
                    statement, {**identity(tenant), "numbers": numbers, "ids": ids}
                )
            ).fetchall()
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
