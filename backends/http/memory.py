"""The AgentMemory port: calls the Memory Orchestrator through the ingress."""

from __future__ import annotations

from pydantic import ValidationError

from backends.http.client import JsonClient
from backends.http.patient_requests import ask
from contracts.agents.ports import MemoryExchange
from contracts.deadline import Deadline
from contracts.errors import UpstreamInvalidResponse
from contracts.identity import Tenant
from contracts.memory.api import Item, QueryResponse, StoreResponse

PREFIX = "/internal/agent-memory"
SERVICE = "the memory"
MAX_TEXT_CHARS = 150_000


class MemoryClient:
    """Recalls and stores. A recall is tried once, since a run can continue without it; a store is
    retried for `patience_s`.
    """

    def __init__(self, base_url: str, secret: str | None, *, patience_s: float) -> None:
        self._http = JsonClient(base_url, secret, service=SERVICE)
        self._patience_s = patience_s

    async def recall(
        self, tenant: Tenant, channel_id: str | None, query: str, limit: int, deadline: Deadline
    ) -> list[Item]:
        """Returns the items that fit `query` best. Raises DaarionError."""
        body = {**tenant.model_dump(), "query": query, "limit": limit}
        if channel_id is not None:
            body["channel_id"] = channel_id
        answer = await ask(self._http, f"{PREFIX}/query", deadline, body=body)
        try:
            return QueryResponse.model_validate(answer.body).items
        except ValidationError:
            raise UpstreamInvalidResponse(f"{SERVICE} did not answer with items") from None

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
        answer = await ask(
            self._http,
            f"{PREFIX}/store",
            deadline,
            body=body,
            headers=headers,
            patience_s=self._patience_s,
        )
        try:
            return StoreResponse.model_validate(answer.body).id
        except ValidationError:
            raise UpstreamInvalidResponse(f"{SERVICE} did not answer with an id") from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close()
