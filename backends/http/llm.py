"""The ChatModel port: calls the LLM proxy through the ingress, as any other service does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cachetools import LRUCache

from backends.http.client import Credentials, ServiceClient
from contracts.access.principals import acting
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.identity import Tenant
from contracts.llm.answers import ProxyResponse
from contracts.llm.listings import ModelInfo, ModelList
from contracts.llm.ports import ModelRequest

PATH = "/internal/llm/proxy"
MODELS_PATH = "/internal/llm/models"
MODELS_TIMEOUT_S = 2.0
MODELS_FRESH_S = 10.0
MAX_LISTED = 1_000


class LLMProxyClient(ServiceClient):
    """Calls the LLM proxy, retrying for `patience_s` while it is unavailable."""

    service = "the LLM proxy"

    def __init__(self, base_url: str, credentials: Credentials, *, patience_s: float = 0.0) -> None:
        super().__init__(base_url, credentials, patience_s=patience_s)
        self._listed = LRUCache[str, tuple[float, dict[str, ModelInfo]]](MAX_LISTED)

    async def chat(
        self, request: ModelRequest, tenant: Tenant, channel_id: str | None, deadline: Deadline
    ) -> ProxyResponse:
        """Returns one completion. Raises DaarionError."""
        metadata = {"agent_id": tenant.agent_id, "microdao_id": tenant.microdao_id}
        body: dict[str, Any] = {
            "model": request.model,
            "messages": list(request.messages),
            "metadata": metadata | ({"channel_id": channel_id} if channel_id else {}),
            "max_tokens": request.max_tokens,
            "timeout_s": max(deadline.remaining(), 0.001),
        }
        if request.tools:
            body |= {"tools": list(request.tools), "tool_choice": request.tool_choice or "auto"}
        if request.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(request.schema), "strict": True},
            }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        answer = await self._ask(PATH, deadline, body=body, patience_s=self._patience_s)
        return self._read(answer, ProxyResponse, "a completion")

    async def answering(self, logical_model: str, deadline: Deadline) -> str | None:
        """Returns the model that answers for `logical_model`, or None if it is unknown.

        The list of models, which differs between principals, is cached for `MODELS_FRESH_S`, and
        longer while the proxy is unavailable.
        """
        until, models = self._listed.get(acting().name, (0.0, {}))
        try:
            if time.monotonic() > until:
                answer = await self._ask(
                    MODELS_PATH, deadline.sooner(MODELS_TIMEOUT_S), method="GET"
                )
                listed = self._read(answer, ModelList, "models")
                models = {model.id: model for model in listed.models}
                self._listed[acting().name] = time.monotonic() + MODELS_FRESH_S, models
        except DaarionError:
            if not models:
                return None
        return first_available(logical_model, models)


def first_available(logical_model: str, models: Mapping[str, ModelInfo]) -> str | None:
    """Returns the model itself, else the first of its fallbacks that is available."""
    first = models.get(logical_model)
    if first is None:
        return None
    for name in (logical_model, *first.fallbacks):
        found = models.get(name)
        if found is not None and found.available:
            return found.name
    return None
