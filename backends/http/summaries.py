"""The ChatClient port: calls the LLM proxy through the ingress, as any other service does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.http.client import JsonClient
from contracts.deadline import Deadline
from contracts.errors import UpstreamInvalidResponse
from contracts.identity import Tenant
from contracts.memory.ports import Completion

PATH = "/internal/llm/proxy"
SERVICE = "the LLM proxy"


class LLMProxyClient:
    """Asks one logical model. `base_url` is the ingress; `secret` opens it if one is configured."""

    def __init__(self, base_url: str, secret: str | None, *, model: str, max_tokens: int) -> None:
        self._http = JsonClient(base_url, secret, service=SERVICE)
        self._model = model
        self._max_tokens = max_tokens

    async def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        tenant: Tenant,
        channel_id: str | None,
        deadline: Deadline,
    ) -> Completion:
        """Returns one completion. Raises DaarionError."""
        deadline.check()
        body = {
            "model": self._model,
            "messages": list(messages),
            "metadata": {
                "agent_id": tenant.agent_id,
                "microdao_id": tenant.microdao_id,
                "channel_id": channel_id,
            },
            "max_tokens": self._max_tokens,
            "timeout_s": deadline.remaining(),
        }
        answer = await self._http.request("POST", PATH, deadline, body=body)
        if answer.status != 200:
            raise self._http.refusal(answer)
        found = answer.body if isinstance(answer.body, dict) else {}
        content, model = found.get("content"), found.get("model_resolved")
        if not isinstance(content, str) or not isinstance(model, str):
            raise UpstreamInvalidResponse(f"the answer of {SERVICE} has no content")
        return Completion(content, model)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close()
