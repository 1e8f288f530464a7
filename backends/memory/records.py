"""Durable memories: one transaction writes the record, its event, its chunks and queue entries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import orjson
from psycopg import sql

from backends.memory.areas import (
    OWN,
    Connection,
    all_of,
    chunk_numbers,
    identity,
    tenant_rows,
    tenant_transaction,
)
from backends.memory.lexicon.postings import pack_terms
from backends.memory.lexicon.terms import terms
from backends.memory.removal import remove_memory
from backends.postgres.pages import read_cursor, write_cursor
from backends.postgres.pool import PostgresAdapter
from contracts.errors import Conflict, DaarionError, OverLimit
from contracts.identity import Tenant
from contracts.memory.administration import ExportedMemory, ExportFilter
from contracts.memory.api import Item, ItemsFilter, ItemsPage
from contracts.memory.items import described, origin_of, source_of, text_of
from contracts.memory.ports import NewMemory, Stored

EXPORT_PAGE = 200
BULK_TIMEOUT_S = 30.0

# Everything that a store writes; nothing if the memory exists already.
ADD = """
WITH new AS (
    INSERT INTO memories (
        microdao_id, agent_id, id, channel_id, kind, content, meta, created_at, fingerprint,
        idempotency_key
    )
    VALUES (
        %(microdao_id)s, %(agent_id)s, %(id)s, %(channel_id)s, %(kind)s, %(content)s, %(meta)s,
        %(created_at)s, %(fingerprint)s, %(key)s
    )
    ON CONFLICT DO NOTHING RETURNING *
), area AS (
    INSERT INTO memory_areas (microdao_id, agent_id) SELECT microdao_id, agent_id FROM new
    ON CONFLICT DO NOTHING
), event AS (
    INSERT INTO memory_events (
        microdao_id, agent_id, channel_id, memory_id, kind, content, created_at
    )
    SELECT microdao_id, agent_id, channel_id, id, kind, content, created_at FROM new
), chunk AS (
    INSERT INTO agent_memories (
        chunk_no, id, part, microdao_id, agent_id, channel_id, kind, created_at, content, meta
    )
    SELECT number, id, part - 1, microdao_id, agent_id, channel_id, kind, created_at, added.content,
           meta
    FROM new, unnest(%(numbers)s::bigint[], %(contents)s::text[])
         WITH ORDINALITY AS added (number, content, part)
), term AS (
    INSERT INTO memory_terms (microdao_id, agent_id, chunk_no, terms)
    SELECT microdao_id, agent_id, number, terms
    FROM new, unnest(%(numbers)s::bigint[], %(terms)b::bytea[]) AS added (number, terms)
), queued AS (
    INSERT INTO memory_queue (microdao_id, agent_id, chunk_no, memory_id)
    SELECT microdao_id, agent_id, number, id FROM new, unnest(%(numbers)s::bigint[]) AS number
)
SELECT count(*) AS added FROM new
"""
FIND_SAME = """
SELECT id, content, idempotency_key FROM memories
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
  AND (fingerprint = %(fingerprint)s OR idempotency_key = %(key)s)
ORDER BY idempotency_key = %(key)s DESC NULLS LAST LIMIT 1
"""
WAITING = """
SELECT EXISTS (
    SELECT FROM memory_queue
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND memory_id = %(id)s
) AS waiting
"""
ONE = """
SELECT content FROM memories
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND id = %(id)s
"""
UNMERGED = """
INSERT INTO memory_areas AS area (microdao_id, agent_id, unmerged)
VALUES (%(microdao_id)s, %(agent_id)s, %(chunks)s)
ON CONFLICT (microdao_id, agent_id) DO UPDATE SET unmerged = area.unmerged + excluded.unmerged
"""
PAGE = sql.SQL("""
SELECT id, kind, channel_id, created_at, content, meta FROM memories
WHERE {where} ORDER BY created_at DESC, id DESC LIMIT %(rows)s
""")
EXPORT = sql.SQL("""
SELECT id, kind, channel_id, created_at, content, meta FROM memories
WHERE {where} ORDER BY created_at, id LIMIT %(rows)s
""")
FILTERS = {
    "channel_id": sql.SQL("channel_id = %(channel_id)s"),
    "kind": sql.SQL("kind = %(kind)s"),
    "since": sql.SQL("created_at >= %(since)s"),
    "until": sql.SQL("created_at < %(until)s"),
}
OLDER = sql.SQL("(created_at, id) < (%(after_at)s, %(after_id)s)")
NEWER = sql.SQL("(created_at, id) > (%(after_at)s, %(after_id)s)")


class MemoryStore(PostgresAdapter):
    """Implements MemoryRecords."""

    async def add(self, memory: NewMemory, refusal: OverLimit | None = None) -> Stored:
        # Before the transaction, so that no connection waits for it.
        counts = await asyncio.to_thread(lambda: [terms(chunk) for chunk in memory.chunks])
        async with tenant_transaction(self._database, memory.tenant) as connection:
            return await _add(connection, memory, counts, refusal)

    async def add_all(self, memories: Sequence[NewMemory], refusal: OverLimit | None = None) -> int:
        if not memories:
            return 0
        new = chunks = 0
        counted = await asyncio.to_thread(
            lambda: [[terms(chunk) for chunk in memory.chunks] for memory in memories]
        )
        async with tenant_transaction(
            self._database, memories[0].tenant, timeout_s=BULK_TIMEOUT_S
        ) as connection:
            for memory, counts in zip(memories, counted, strict=True):
                if not (await _add(connection, memory, counts, refusal)).duplicate:
                    new, chunks = new + 1, chunks + len(memory.chunks)
            await connection.execute(UNMERGED, {**identity(memories[0].tenant), "chunks": chunks})
        return new

    async def is_indexed(self, tenant: Tenant, memory_id: str) -> bool:
        async with tenant_transaction(self._database, tenant) as connection:
            return await _is_indexed(connection, tenant, memory_id)

    async def content_of(self, tenant: Tenant, memory_id: str) -> Mapping[str, Any] | None:
        values = {**identity(tenant), "id": memory_id}
        rows = await tenant_rows(self._database, tenant, ONE, values)
        return rows[0]["content"] if rows else None

    async def page(self, items: ItemsFilter) -> ItemsPage:
        conditions, values = _selected(items.model_dump(exclude_none=True))
        query = items.model_dump(mode="json", exclude={"cursor", "limit"})
        if items.cursor is not None:
            values["after_at"], values["after_id"] = read_cursor(items.cursor, query)
            conditions.append(OLDER)
        values["rows"] = items.limit + 1
        statement = PAGE.format(where=all_of(conditions))
        rows = await tenant_rows(self._database, items, statement, values)
        shown = rows[: items.limit]
        more = len(rows) > items.limit
        cursor = write_cursor(shown[-1]["created_at"], shown[-1]["id"], query) if more else None
        return ItemsPage(items=[_listed(row) for row in shown], next_cursor=cursor)

    async def delete(self, tenant: Tenant, memory_id: str) -> bool:
        async with tenant_transaction(self._database, tenant) as connection:
            return await remove_memory(connection, tenant, memory_id)

    async def export(self, selection: ExportFilter) -> AsyncIterator[list[ExportedMemory]]:
        """Each page is its own transaction, so a slow reader holds no connection."""
        conditions, values = _selected(selection.model_dump(exclude_none=True))
        values["rows"] = EXPORT_PAGE
        while True:
            statement = EXPORT.format(where=all_of(conditions))
            rows = await tenant_rows(self._database, selection, statement, values)
            if rows:
                yield [ExportedMemory(**row) for row in rows]
            if len(rows) < EXPORT_PAGE:
                return
            if "after_id" not in values:
                conditions.append(NEWER)
            values |= {"after_at": rows[-1]["created_at"], "after_id": rows[-1]["id"]}


async def _add(
    connection: Connection,
    memory: NewMemory,
    counts: Sequence[Mapping[str, int]],
    refusal: OverLimit | None,
) -> Stored:
    numbers = await chunk_numbers(connection, len(memory.chunks))
    record = {
        **identity(memory.tenant),
        "id": memory.id,
        "channel_id": memory.channel_id,
        "kind": memory.kind,
        "content": orjson.dumps(memory.content).decode(),
        "meta": orjson.dumps(memory.meta).decode(),
        "created_at": memory.created_at,
        "fingerprint": memory.fingerprint,
        "key": memory.idempotency_key,
        "numbers": numbers,
        "contents": list(memory.chunks),
        "terms": [pack_terms(number, count) for number, count in zip(numbers, counts, strict=True)],
    }
    if refusal is None:
        row = await (await connection.execute(ADD, record)).fetchone()
        if row is not None and row["added"]:
            return Stored(memory.id, duplicate=False, indexed=False)
    gone = Conflict("this memory was deleted at the same moment: send it again")
    return await _same(connection, memory, record, refusal or gone)


async def _same(
    connection: Connection, memory: NewMemory, record: dict[str, Any], missing: DaarionError
) -> Stored:
    """Returns the memory that exists already, or raises `missing`.

    The conflicting row was committed before the insert gave way to it, so this statement sees it.
    """
    row = await (await connection.execute(FIND_SAME, record)).fetchone()
    if row is None:
        raise missing
    if (
        memory.idempotency_key is not None
        and row["idempotency_key"] == memory.idempotency_key
        and row["content"] != memory.content
    ):
        raise Conflict(
            "this Idempotency-Key was used for another content: use a new key for a new memory"
        )
    return Stored(
        row["id"], duplicate=True, indexed=await _is_indexed(connection, memory.tenant, row["id"])
    )


async def _is_indexed(connection: Connection, tenant: Tenant, memory_id: str) -> bool:
    row = await (
        await connection.execute(WAITING, {**identity(tenant), "id": memory_id})
    ).fetchone()
    return row is not None and not row["waiting"]


def _selected(values: dict[str, Any]) -> tuple[list[sql.Composable], dict[str, Any]]:
    """Returns the tenant predicate and the filters that are set, with their parameters."""
    where = [condition for name, condition in FILTERS.items() if name in values]
    return [OWN, *where], dict(values)


def _listed(row: Mapping[str, Any]) -> Item:
    origin = origin_of(row["id"], "mid-term", row["channel_id"])
    meta = described(
        row["meta"],
        source=source_of(row["channel_id"]),
        created_at=row["created_at"],
        origin=origin,
    )
    return Item(id=row["id"], kind=row["kind"], content=text_of(row["content"]), meta=meta)
