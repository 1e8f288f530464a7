"""The ChatModel port: the LLM proxy over HTTP, through the ingress, as any agent-runtime calls it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from backends.internal_http import JsonClient
from backends.patient_requests import ask
from contracts.agents import ModelRequest
from contracts.deadline import Deadline
from contracts.errors import UpstreamInvalidResponse
from contracts.llm import ProxyResponse
from contracts.memory import Tenant

PATH = "/internal/llm/proxy"
SERVICE = "the LLM proxy"


class ProxyChatModel:
    """Asks the LLM proxy. `patience_s` bounds how long it is asked again while it is away."""

    def __init__(self, base_url: str, secret: str | None, *, patience_s: float) -> None:
        self._http = JsonClient(base_url, secret, service=SERVICE)
        self._patience_s = patience_s

    async def chat(self, request: ModelRequest, tenant: Tenant, channel_id: str | None, deadline: Deadline) -> ProxyResponse:
        """See the port."""
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
        answer = await ask(self._http, PATH, deadline, body=body, patience_s=self._patience_s)
        try:
            return ProxyResponse.model_validate(answer.body)
        except ValidationError:
            raise UpstreamInvalidResponse(f"{SERVICE} did not answer with a completion") from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close()
