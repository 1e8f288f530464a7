"""Stores memories; their embedding follows in the background."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from common.tracing import spanned
from contracts.errors import InvalidRequest, NotFound
from contracts.identity import Tenant, new_id
from contracts.memory.administration import ExportedMemory
from contracts.memory.api import DeleteResponse, StoreRequest, StoreResponse
from contracts.memory.items import MEMORY_META, text_of
from contracts.memory.ports import ItemReader, MemoryRecords, NewMemory, ScopeReader
from contracts.memory.settings import ChunkSettings
from contracts.values import is_storable
from services.access.quotas import Quotas
from services.memory.chunking import chunk
from services.memory.ingestion import IngestionWorker

MAX_KEY_CHARS = 256
MAX_ID_CHARS = 256
PREFIX = "mem-"
KB_PREFIX = "kb-"
POLL_EVERY_S = 0.25


@dataclass(frozen=True)
class Remembering:
    """The use case behind `POST /store` and imports."""

    records: MemoryRecords
    scopes: ScopeReader
    items: ItemReader
    worker: IngestionWorker
    size: ChunkSettings
    quotas: Quotas

    async def store(self, request: StoreRequest, idempotency_key: str | None) -> StoreResponse:
        """Returns when the memory is committed, or embedded if the request asks for that.

        A caller may send back an item of a query: its id is in `meta.memory`, so it is not stored.

        Raises:
            InvalidRequest: the idempotency key is blank or too long.
            Conflict: the idempotency key was used for another content.
            OverLimit: a new memory is over the microDAO's quota.
        """
        known = await self._recalled(request)
        if known is not None:
            return StoreResponse(id=known, indexed=True, duplicate=True)
        new = self._new(request, _key_hash(idempotency_key))
        refusal = await self.quotas.refusal("memories", request.microdao_id)
        stored = await spanned("memory.store", self.records.add, new, refusal)
        if not stored.duplicate:
            self.quotas.added("memories", request.microdao_id)
        if not stored.indexed:
            self.worker.wake()
        indexed = stored.indexed or await self._indexed(request, stored.id, request.wait_indexed_s)
        return StoreResponse(id=stored.id, indexed=indexed, duplicate=stored.duplicate or None)

    async def restore(self, tenant: Tenant, memories: Sequence[ExportedMemory]) -> int:
        """Stores exported memories for `tenant` in one transaction; returns how many were new.

        Raises OverLimit, and stores none, where they are over the microDAO's quota.
        """
        new = [
            NewMemory(
                id=memory.id if memory.id.startswith(PREFIX) else _new_id(),
                tenant=tenant,
                kind=memory.kind,
                channel_id=memory.channel_id,
                content=memory.content,
                meta=memory.meta,
                created_at=memory.created_at,
                fingerprint=_fingerprint(
                    memory.kind, memory.channel_id, memory.content, memory.meta
                ),
                idempotency_key=None,
                chunks=self._chunks(memory.content),
            )
            for memory in memories
        ]
        refusal = await self.quotas.refusal("memories", tenant.microdao_id, len(new))
        added = await self.records.add_all(new, refusal)
        self.quotas.added("memories", tenant.microdao_id, added)
        self.worker.wake()
        return added

    async def forget(self, tenant: Tenant, memory_id: str) -> DeleteResponse:
        """Removes one memory from every tier. Raises NotFound for an unknown id."""
        if (
            len(memory_id) > MAX_ID_CHARS
            or not is_storable(memory_id)
            or not await self.records.delete(tenant, memory_id)
        ):
            raise NotFound("no such memory: list them to see their ids")
        return DeleteResponse(id=memory_id)

    def _new(self, request: StoreRequest, key: bytes | None) -> NewMemory:
        meta = _without_stamp(request.meta)
        return NewMemory(
            id=_new_id(),
            tenant=Tenant(microdao_id=request.microdao_id, agent_id=request.agent_id),
            kind=request.kind,
            channel_id=request.channel_id,
            content=request.content,
            meta=meta,
            created_at=request.created_at or datetime.now(UTC),
            fingerprint=_fingerprint(request.kind, request.channel_id, request.content, meta),
            idempotency_key=key,
            chunks=self._chunks(request.content),
        )

    def _chunks(self, content: Mapping[str, Any]) -> list[str]:
        return chunk(text_of(content), self.size)

    async def _recalled(self, request: StoreRequest) -> str | None:
        """Returns the id of the item that the request repeats, by its `meta.memory` and text."""
        known, text = _stamped(request.meta.get(MEMORY_META)), text_of(request.content)
        if known is None:
            return None
        if known.startswith(KB_PREFIX):
            number = known.removeprefix(KB_PREFIX)
            if not number.isdecimal() or len(number) > 18:
                return None
            scope = await self.scopes.scope_of(request)
            item = (await self.items.read(scope, {known: int(number)})).get(known)
            return known if item is not None and item.content == text else None
        content = await self.records.content_of(request, known)
        return known if content is not None and text in text_of(content) else None

    async def _indexed(self, tenant: Tenant, memory_id: str, seconds: float) -> bool:
        """Waits at most `seconds`. Asks the database: another process may embed the chunks."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while (remaining := deadline - clock()) > 0:
            await self.worker.progress(min(remaining, POLL_EVERY_S))
            if await self.records.is_indexed(tenant, memory_id):
                return True
        return False


def _new_id() -> str:
    return f"{PREFIX}{new_id()}"


def _stamped(value: Any) -> str | None:
    """Returns the id if `meta.memory` was written by a query."""
    if isinstance(value, dict) and isinstance(value.get("tier"), str):
        found = value.get("id")
        return found if isinstance(found, str) else None
    return None


def _without_stamp(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in meta.items() if key != MEMORY_META or _stamped(value) is None
    }


def _fingerprint(
    kind: str, channel_id: str | None, content: Mapping[str, Any], meta: Mapping[str, Any]
) -> bytes:
    identity = orjson.dumps([kind, channel_id, content, meta], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(identity).digest()


def _key_hash(key: str | None) -> bytes | None:
    if key is None:
        return None
    if not key.strip() or len(key) > MAX_KEY_CHARS:
        raise InvalidRequest(f"Idempotency-Key: 1 to {MAX_KEY_CHARS} characters")
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
