"""The AgentMemory port: calls the Memory Orchestrator through the ingress."""

from __future__ import annotations

from collections.abc import Mapping

from backends.http.client import ServiceClient
from contracts.deadline import Deadline
from contracts.identity import Tenant
from contracts.memory.api import Item, QueryResponse, StoreResponse

PREFIX = "/internal/agent-memory"
MAX_TEXT_CHARS = 150_000


class MemoryClient(ServiceClient):
    """Recalls and stores. A recall is tried once, since a run can continue without it; a store is
    retried for `patience_s`.
    """

    service = "the memory"

    async def recall(
        self, tenant: Tenant, channel_id: str | None, query: str, limit: int, deadline: Deadline
    ) -> list[Item]:
        """Returns the items that fit `query` best. Raises DaarionError."""
        body = {**tenant.model_dump(), "query": query, "limit": limit}
        if channel_id is not None:
            body["channel_id"] = channel_id
        answer = await self._ask(f"{PREFIX}/query", deadline, body=body)
        return self._read(answer, QueryResponse, "items").items

    async def remember(
        self,
        tenant: Tenant,
        channel_id: str | None,
        content: Mapping[str, str],
        deadline: Deadline,
        *,
        key: str,
        meta: Mapping[str, str],
    ) -> str:
        """Stores one conversation and returns its id. Raises DaarionError."""
        body = {
            **tenant.model_dump(),
            "kind": "conversation",
            "content": {name: text[:MAX_TEXT_CHARS] for name, text in content.items()},
            "meta": dict(meta),
        }
        if channel_id is not None:
            body["channel_id"] = channel_id
        headers = {"Idempotency-Key": key}
        answer = await self._ask(
            f"{PREFIX}/store", deadline, body=body, headers=headers, patience_s=self._patience_s
        )
        return self._read(answer, StoreResponse, "an id").id
