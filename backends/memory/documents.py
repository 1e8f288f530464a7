"""Documents of the knowledge base and their chunks, as rows: one transaction per document."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from psycopg import sql

from backends.memory.areas import SHARED, Area, Connection, lock, working
from backends.memory.document_files import KbFile
from backends.memory.lexicon.postings import pack_terms
from backends.postgres.pool import Database

TIMEOUT_S = 30.0

KNOWN = (
    "SELECT id, path, hash, size, modified_ns FROM kb_documents WHERE microdao_id = %(microdao_id)s"
)
SAVE = """
INSERT INTO kb_documents (microdao_id, path, hash, size, modified_ns)
VALUES (%(microdao_id)s, %(path)s, %(hash)s, %(size)s, %(modified_ns)s)
ON CONFLICT (microdao_id, path) DO UPDATE
SET hash = excluded.hash, size = excluded.size, modified_ns = excluded.modified_ns, indexed_at = now()
RETURNING id
"""
TOUCH = """
UPDATE kb_documents SET path = %(path)s, size = %(size)s, modified_ns = %(modified_ns)s
WHERE microdao_id = %(microdao_id)s AND id = %(id)s
"""
FORGET = "DELETE FROM kb_documents WHERE microdao_id = %(microdao_id)s AND id = %(id)s"
AREA = sql.SQL("microdao_id = %(microdao_id)s AND agent_id = ''")
CHUNKS = "SELECT chunk_no, content FROM agent_memories WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND document_id = %(id)s"
NUMBERS = "SELECT nextval('memory_chunk_no') AS number FROM generate_series(1, %(count)s)"
ADD = """
WITH added AS (
    SELECT * FROM unnest(%(numbers)s::bigint[], %(parts)s::integer[], %(contents)s::text[], %(metas)s::text[], %(terms)b::bytea[])
        AS row (number, part, content, meta, terms)
), chunk AS (
    INSERT INTO agent_memories (chunk_no, id, part, document_id, microdao_id, agent_id, kind, created_at, content, meta)
    SELECT number, 'kb-' || number, part, %(id)s, %(microdao_id)s, '', 'kb', %(created_at)s, content, meta::json FROM added
), term AS (
    INSERT INTO memory_terms (microdao_id, agent_id, chunk_no, terms) SELECT %(microdao_id)s, '', number, terms FROM added
), area AS (
    INSERT INTO memory_areas (microdao_id, agent_id) VALUES (%(microdao_id)s, '') ON CONFLICT DO NOTHING
)
INSERT INTO memory_queue (microdao_id, agent_id, chunk_no, memory_id) SELECT %(microdao_id)s, '', number, 'kb-' || number FROM added
"""
KEEP = """
UPDATE agent_memories AS chunk SET part = kept.part, meta = kept.meta::json, created_at = %(created_at)s
FROM unnest(%(numbers)s::bigint[], %(parts)s::integer[], %(metas)s::text[]) AS kept (number, part, meta)
WHERE chunk.microdao_id = %(microdao_id)s AND chunk.agent_id = '' AND chunk.document_id = %(id)s AND chunk.chunk_no = kept.number
"""
MOVE = """
UPDATE agent_memories SET meta = jsonb_set(meta::jsonb, '{path}', to_jsonb(%(path)s::text))::json
WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND document_id = %(id)s
"""
REMOVE = """
WITH gone AS (
    DELETE FROM agent_memories
    WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND document_id = %(id)s AND chunk_no = ANY(%(numbers)s) RETURNING chunk_no
), term AS (
    DELETE FROM memory_terms WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND chunk_no = ANY(%(numbers)s)
), queued AS (
    DELETE FROM memory_queue WHERE microdao_id = %(microdao_id)s AND agent_id = '' AND chunk_no = ANY(%(numbers)s)
)
UPDATE memory_areas SET removed = removed + (SELECT count(DISTINCT chunk_no) FROM gone)
WHERE microdao_id = %(microdao_id)s AND agent_id = ''
"""
TREES = "SELECT microdao_id FROM memory_areas WHERE agent_id = ''"


@dataclass(frozen=True, slots=True)
class Document:
    """What is known of an indexed file."""

    id: int
    file: KbFile
    hash: bytes


@dataclass(frozen=True, slots=True)
class DocumentChunk:
    """A chunk to index: its text, its grams, and where it stands."""

    content: str
    grams: Mapping[str, int]
    meta: Mapping[str, Any]


class KbDocuments:
    """The rows of one tree at a time; an empty microdao_id is the shared tree."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def trees(self) -> list[str]:
        """Returns the microDAOs whose tree has, or had, something indexed."""
        async with working(self._database) as connection:
            return [
                row["microdao_id"] for row in await (await connection.execute(TREES)).fetchall()
            ]

    async def known(self, microdao_id: str) -> dict[str, Document]:
        """Returns the tree's documents by path."""
        async with working(
            self._database, Area(microdao_id, SHARED), timeout_s=TIMEOUT_S
        ) as connection:
            rows = await (await connection.execute(KNOWN, {"microdao_id": microdao_id})).fetchall()
        return {
            row["path"]: Document(
                row["id"], KbFile(row["path"], row["size"], row["modified_ns"]), row["hash"]
            )
            for row in rows
        }

    async def save(
        self, microdao_id: str, file: KbFile, file_hash: bytes, chunks: Sequence[DocumentChunk]
    ) -> int:
        """Writes a new or changed document; returns the number of chunks to embed. A chunk whose text stayed keeps its vector."""
        area = Area(microdao_id, SHARED)
        values = {
            "microdao_id": microdao_id,
            "path": file.path,
            "hash": file_hash,
            "size": file.size,
            "modified_ns": file.modified_ns,
        }
        values["created_at"] = datetime.fromtimestamp(min(max(file.modified_ns / 1e9, 0), 4e9), UTC)
        async with working(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            row = await (await connection.execute(SAVE, values)).fetchone()
            values["id"] = row["id"] if row else None
            kept, new, gone = _compared(await self._chunks(connection, values), chunks)
            await connection.execute(REMOVE, {**values, "numbers": gone})
            await connection.execute(KEEP, {**values, **_places(kept)})
            await _add(connection, values, new)
        return len(new)

    async def touch(self, microdao_id: str, document: Document, file: KbFile) -> None:
        """Notes that the document's file was touched or moved; its content is the same."""
        values = {
            "microdao_id": microdao_id,
            "id": document.id,
            "path": file.path,
            "size": file.size,
            "modified_ns": file.modified_ns,
        }
        area = Area(microdao_id, SHARED)
        async with working(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            await connection.execute(TOUCH, values)
            if file.path != document.file.path:
                await connection.execute(MOVE, values)

    async def remove(self, microdao_id: str, document: Document) -> int:
        """Removes a document; returns the number of its chunks."""
        area = Area(microdao_id, SHARED)
        values: dict[str, Any] = {"microdao_id": microdao_id, "id": document.id}
        async with working(self._database, area, timeout_s=TIMEOUT_S) as connection:
            await lock(connection, area)
            numbers = [row["chunk_no"] for row in await self._chunks(connection, values)]
            await connection.execute(REMOVE, {**values, "numbers": numbers})
            await connection.execute(FORGET, values)
        return len(set(numbers))

    async def _chunks(
        self, connection: Connection, values: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        return await (await connection.execute(CHUNKS, values)).fetchall()


def _compared(
    rows: Sequence[Mapping[str, Any]], chunks: Sequence[DocumentChunk]
) -> tuple[list[tuple[int, int, DocumentChunk]], list[tuple[int, DocumentChunk]], list[int]]:
    """Returns (number, part, chunk) of what stays, (part, chunk) of what is new, and the numbers of what is gone."""
    by_text: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        if row["chunk_no"] not in by_text[row["content"]]:  # a chunk has a row per model version
            by_text[row["content"]].append(row["chunk_no"])
    kept, new = [], []
    for part, chunk in enumerate(chunks):
        if numbers := by_text[chunk.content]:
            kept.append((numbers.pop(), part, chunk))
        else:
            new.append((part, chunk))
    return kept, new, [number for numbers in by_text.values() for number in numbers]


def _places(kept: Sequence[tuple[int, int, DocumentChunk]]) -> dict[str, list[Any]]:
    return {
        "numbers": [number for number, _, _ in kept],
        "parts": [part for _, part, _ in kept],
        "metas": [_json(chunk.meta) for _, _, chunk in kept],
    }


async def _add(
    connection: Connection, values: Mapping[str, Any], new: Sequence[tuple[int, DocumentChunk]]
) -> None:
    rows = await (await connection.execute(NUMBERS, {"count": len(new)})).fetchall()
    numbers = [row["number"] for row in rows]
    columns = {
        "numbers": numbers,
        "parts": [part for part, _ in new],
        "contents": [chunk.content for _, chunk in new],
        "metas": [_json(chunk.meta) for _, chunk in new],
        "terms": [
            pack_terms(number, chunk.grams) for number, (_, chunk) in zip(numbers, new, strict=True)
        ],
    }
    await connection.execute(ADD, {**values, **columns})


def _json(meta: Mapping[str, Any]) -> str:
    return orjson.dumps(meta).decode()
