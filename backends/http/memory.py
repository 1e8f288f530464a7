"""The AgentMemory port: calls the Memory Orchestrator through the ingress."""

from __future__ import annotations

from backends.http.client import ServiceClient
from contracts.agents.ports import MemoryExchange
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

    async def remember(self, exchange: MemoryExchange, deadline: Deadline) -> str:
        """Stores one exchange and returns its id. Raises DaarionError."""
        body = {
            **exchange.tenant.model_dump(),
            "kind": "conversation",
            "content": {
                "user_message": exchange.user_message[:MAX_TEXT_CHARS],
                "agent_reply": exchange.agent_reply[:MAX_TEXT_CHARS],
            },
            "meta": dict(exchange.meta),
        }
        if exchange.channel_id is not None:
            body["channel_id"] = exchange.channel_id
        headers = {"Idempotency-Key": exchange.key}
        answer = await self._ask(
            f"{PREFIX}/store", deadline, body=body, headers=headers, patience_s=self._patience_s
        )
        return self._read(answer, StoreResponse, "an id").id
