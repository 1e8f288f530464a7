"""Documents of the knowledge base and their chunks as rows; one transaction per document."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString

import orjson

from backends.memory.areas import (
    SHARED,
    Connection,
    background_rows,
    background_transaction,
    chunk_numbers,
    lock,
)
from backends.memory.lexicon.postings import pack_terms, renumbered
from backends.memory.lexicon.terms import terms
from backends.postgres.pool import PostgresAdapter
from contracts.memory.background import Document, DocumentChunk, DocumentFile
from contracts.memory.documents import StoredDocument
from contracts.memory.ports import Area

TIMEOUT_S = 30.0
ADD_AT_ONCE = 500

KNOWN = """
SELECT id, path, hash, size, modified_ns FROM kb_documents WHERE microdao_id = %(microdao_id)s
"""
# Chunks and queue are read once for the page, not once for each document.
PAGE = """
WITH found AS MATERIALIZED (
    SELECT id, path, size, indexed_at, encode(substring(hash FOR 32), 'hex') AS version
    FROM kb_documents
    WHERE microdao_id = %(microdao_id)s AND path > %(after)s
      AND (%(path)s::text IS NULL OR path = %(path)s)
    ORDER BY path LIMIT %(limit)s
), chunk AS MATERIALIZED (
    SELECT DISTINCT document_id, chunk_no, (meta ->> 'page')::integer AS page
    FROM agent_memories
    WHERE microdao_id = %(microdao_id)s AND agent_id = ''
      AND document_id = ANY(ARRAY(SELECT id FROM found))
), queued AS MATERIALIZED (
    SELECT DISTINCT chunk_no FROM memory_queue
    WHERE microdao_id = %(microdao_id)s AND agent_id = ''
), counted AS (
    SELECT document_id, count(chunk_no) AS chunks, count(queued.chunk_no) AS waiting,
           max(page) AS pages
    FROM chunk LEFT JOIN queued USING (chunk_no) GROUP BY document_id
)
SELECT found.path, found.size, found.indexed_at, found.version, counted.pages,
       coalesce(counted.chunks, 0) AS chunks, coalesce(counted.waiting, 0) AS waiting
FROM found LEFT JOIN counted ON counted.document_id = found.id ORDER BY found.path
"""
COUNT = "SELECT count(*) AS found FROM kb_documents WHERE microdao_id = %(microdao_id)s"
FIND = f"{KNOWN} AND path = %(path)s"
SAVE = """
INSERT INTO kb_documents (microdao_id, path, hash, size, modified_ns)
VALUES (%(microdao_id)s, %(path)s, %(hash)s, %(size)s, %(modified_ns)s)
ON CONFLICT (microdao_id, path) DO UPDATE
SET hash = excluded.hash, size = excluded.size, modified_ns = excluded.modified_ns,
    indexed_at = now()
RETURNING id
"""
TOUCH = """
UPDATE kb_documents
SET path = %(path)s, hash = %(hash)s, size = %(size)s, modified_ns = %(modified_ns)s
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND NOT EXISTS (
    SELECT FROM kb_documents AS other
    WHERE other.microdao_id = %(microdao_id)s AND other.path = %(path)s AND other.id <> %(id)s
)
"""
FORGET = "DELETE FROM kb_documents WHERE microdao_id = %(microdao_id)s AND id = %(id)s"
# A chunk has a row per model version.
CHUNKS = """
SELECT DISTINCT ON (part, chunk_no) chunk_no, content, meta FROM agent_memories
WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND document_id = %(id)s
ORDER BY part, chunk_no
"""
ADD = """
WITH added AS (
    SELECT * FROM unnest(
        %(numbers)s::bigint[], %(parts)s::integer[], %(contents)s::text[], %(metas)s::text[],
        %(terms)b::bytea[]
    ) AS row (number, part, content, meta, terms)
), chunk AS (
    INSERT INTO agent_memories (
        chunk_no, id, part, document_id, microdao_id, agent_id, kind, created_at, content, meta
    )
    SELECT number, 'kb-' || number, part, %(id)s, %(microdao_id)s, '', 'kb', %(created_at)s,
           content, meta::json
    FROM added
), term AS (
    INSERT INTO memory_terms (microdao_id, agent_id, chunk_no, terms)
    SELECT %(microdao_id)s, '', number, terms FROM added
), area AS (
    INSERT INTO memory_areas (microdao_id, agent_id) VALUES (%(microdao_id)s, '')
    ON CONFLICT DO NOTHING
)
INSERT INTO memory_queue (microdao_id, agent_id, chunk_no, memory_id)
SELECT %(microdao_id)s, '', number, 'kb-' || number FROM added
"""
KEEP = """
UPDATE agent_memories AS chunk
SET part = kept.part, meta = kept.meta::json, created_at = %(created_at)s
FROM unnest(%(numbers)s::bigint[], %(parts)s::integer[], %(metas)s::text[])
     AS kept (number, part, meta)
WHERE chunk.microdao_id = %(microdao_id)s AND chunk.agent_id = '' AND chunk.document_id = %(id)s
  AND chunk.chunk_no = kept.number
"""
MOVE = """
UPDATE agent_memories SET meta = jsonb_set(meta::jsonb, '{path}', to_jsonb(%(path)s::text))::json
WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND document_id = %(id)s
"""
REMOVE = """
WITH gone AS (
    DELETE FROM agent_memories
    WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND document_id = %(id)s
      AND chunk_no = ANY(%(numbers)s) RETURNING chunk_no
), term AS (
    DELETE FROM memory_terms
    WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND chunk_no = ANY(%(numbers)s)
), queued AS (
    DELETE FROM memory_queue
    WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND chunk_no = ANY(%(numbers)s)
)
UPDATE memory_areas SET removed = removed + (SELECT count(DISTINCT chunk_no) FROM gone)
WHERE microdao_id = %(microdao_id)s AND agent_id = ''
"""
TREES = "SELECT microdao_id FROM memory_areas WHERE agent_id = ''"


class DocumentTables(PostgresAdapter):
    """Implements DocumentStore."""

    async def trees(self) -> list[str]:
        return [row["microdao_id"] for row in await background_rows(self._database, TREES)]

    async def known(self, microdao_id: str) -> dict[str, Document]:
        return {row["path"]: _document(row) for row in await self._rows(microdao_id, KNOWN)}

    async def find(self, microdao_id: str, path: str) -> Document | None:
        rows = await self._rows(microdao_id, FIND, path=path)
        return _document(rows[0]) if rows else None

    async def page(
        self, microdao_id: str, *, after: str = "", path: str | None = None, limit: int = 1
    ) -> list[StoredDocument]:
        rows = await self._rows(microdao_id, PAGE, after=after, path=path, limit=limit)
        return [StoredDocument(**row) for row in rows]

    async def count(self, microdao_id: str) -> int:
        (row,) = await self._rows(microdao_id, COUNT)
        return int(row["found"])

    async def chunks(self, microdao_id: str, document: Document) -> list[DocumentChunk]:
        rows = await self._rows(microdao_id, CHUNKS, id=document.id)
        return [DocumentChunk(row["content"], row["meta"]) for row in rows]

    async def save(
        self,
        microdao_id: str,
        file: DocumentFile,
        digest: bytes,
        chunks: Sequence[DocumentChunk],
    ) -> int:
        area = Area(microdao_id, SHARED)
        values: dict[str, Any] = {**area.identity, **_columns(file, digest)}
        values["created_at"] = datetime.fromtimestamp(min(max(file.modified_ns / 1e9, 0), 4e9), UTC)
        # Before the transaction, so that no connection waits for it. Packed, because the terms of a
        # large document would take some hundred times its text.
        packed = await asyncio.to_thread(
            lambda: [pack_terms(0, terms(chunk.content)) for chunk in chunks]
        )
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            row = await (await connection.execute(SAVE, values)).fetchone()
            values["id"] = row["id"] if row else None
            rows = await (await connection.execute(CHUNKS, values)).fetchall()
            kept, new, gone = _compared(rows, chunks)
            await connection.execute(REMOVE, {**values, "numbers": gone})
            await connection.execute(KEEP, {**values, **_places(kept)})
            added = [(part, chunks[part], packed[part]) for part in new]
            for first in range(0, len(added), ADD_AT_ONCE):
                await _add(connection, values, added[first : first + ADD_AT_ONCE])
        return len(new)

    async def touch(
        self, microdao_id: str, document: Document, file: DocumentFile, digest: bytes
    ) -> bool:
        area = Area(microdao_id, SHARED)
        values = {**area.identity, **_columns(file, digest), "id": document.id}
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            found = (await connection.execute(TOUCH, values)).rowcount > 0
            if found and file.path != document.file.path:
                await connection.execute(MOVE, values)
        return found

    async def remove(self, microdao_id: str, document: Document) -> int:
        area = Area(microdao_id, SHARED)
        values: dict[str, Any] = {**area.identity, "id": document.id}
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            rows = await (await connection.execute(CHUNKS, values)).fetchall()
            values["numbers"] = [row["chunk_no"] for row in rows]
            await connection.execute(REMOVE, values)
            await connection.execute(FORGET, values)
        return len(rows)

    async def _rows(self, microdao_id: str, statement: LiteralString, **values: Any) -> Any:
        area = Area(microdao_id, SHARED)
        values |= area.identity
        return await background_rows(self._database, statement, values, area, timeout_s=TIMEOUT_S)


def _document(row: Mapping[str, Any]) -> Document:
    file = DocumentFile(row["path"], row["size"], row["modified_ns"])
    return Document(row["id"], file, row["hash"])


def _columns(file: DocumentFile, digest: bytes) -> dict[str, Any]:
    return {
        "path": file.path,
        "hash": digest,
        "size": file.size,
        "modified_ns": file.modified_ns,
    }


def _compared(
    rows: Sequence[Mapping[str, Any]], chunks: Sequence[DocumentChunk]
) -> tuple[list[tuple[int, int, DocumentChunk]], list[int], list[int]]:
    """Compares stored rows with new chunks by their texts.

    Returns (number, part, chunk) of kept chunks, parts of new ones, numbers of removed ones.
    """
    by_text: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        by_text[row["content"]].append(row["chunk_no"])
    kept, new = [], []
    for part, chunk in enumerate(chunks):
        if numbers := by_text[chunk.content]:
            kept.append((numbers.pop(), part, chunk))
        else:
            new.append(part)
    return kept, new, [number for numbers in by_text.values() for number in numbers]


def _places(kept: Sequence[tuple[int, int, DocumentChunk]]) -> dict[str, list[Any]]:
    return {
        "numbers": [number for number, _, _ in kept],
        "parts": [part for _, part, _ in kept],
        "metas": [_json(chunk.meta) for _, _, chunk in kept],
    }


async def _add(
    connection: Connection,
    values: Mapping[str, Any],
    added: Sequence[tuple[int, DocumentChunk, bytes]],
) -> None:
    """Inserts (part, chunk, its packed terms)."""
    numbers = await chunk_numbers(connection, len(added))
    columns = {
        "numbers": numbers,
        "parts": [part for part, _, _ in added],
        "contents": [chunk.content for _, chunk, _ in added],
        "metas": [_json(chunk.meta) for _, chunk, _ in added],
        "terms": [
            renumbered(packed, number)
            for number, (_, _, packed) in zip(numbers, added, strict=True)
        ],
    }
    await connection.execute(ADD, {**values, **columns})


def _json(meta: Mapping[str, Any]) -> str:
    return orjson.dumps(meta).decode()
