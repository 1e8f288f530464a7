"""The ChatClient port: the LLM proxy over HTTP, through the ingress, as any other service calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import orjson

from backends.http.bounded_body import BodyOverBound, read_whole
from contracts import errors
from contracts.deadline import Deadline
from contracts.errors import DaarionError, Unavailable, UpstreamInvalidResponse
from contracts.identity import Tenant
from contracts.memory.ports import Completion

MAX_ANSWER_BYTES = 8 << 20
PATH = "/internal/llm/proxy"


class LLMProxyClient:
    """Asks one logical model. `base_url` is the ingress; `secret` opens it where one is configured."""

    def __init__(self, base_url: str, secret: str | None, *, model: str, max_tokens: int) -> None:
        headers = {"Content-Type": "application/json"} | (
            {"X-Internal-Secret": secret} if secret else {}
        )
        self._url = f"{base_url}{PATH}"
        self._model = model
        self._max_tokens = max_tokens
        self._session = aiohttp.ClientSession(headers=headers, trust_env=False)

    async def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        tenant: Tenant,
        channel_id: str | None,
        deadline: Deadline,
    ) -> Completion:
        """See the port."""
        deadline.check()
        metadata = {
            "agent_id": tenant.agent_id,
            "microdao_id": tenant.microdao_id,
            "channel_id": channel_id,
        }
        body = {
            "model": self._model,
            "messages": list(messages),
            "metadata": metadata,
            "max_tokens": self._max_tokens,
            "timeout_s": deadline.remaining(),
        }
        status, answer = await self._post(orjson.dumps(body), deadline)
        if status != 200:
            raise _leaf(answer)
        content, model = answer.get("content"), answer.get("model_resolved")
        if not isinstance(content, str) or not isinstance(model, str):
            raise UpstreamInvalidResponse("the LLM proxy's answer has no content")
        return Completion(content, model)

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()

    async def _post(self, body: bytes, deadline: Deadline) -> tuple[int, dict[str, Any]]:
        timeout = aiohttp.ClientTimeout(total=deadline.remaining())
        try:
            async with self._session.post(
                self._url, data=body, timeout=timeout, allow_redirects=False
            ) as response:
                answer = orjson.loads(await read_whole(response, MAX_ANSWER_BYTES))
        except TimeoutError:
            raise deadline.exceeded() from None
        except aiohttp.ClientError:
            raise Unavailable("the LLM proxy cannot be reached: summaries need it; retry") from None
        except BodyOverBound:
            raise UpstreamInvalidResponse("the LLM proxy's answer is too long") from None
        except orjson.JSONDecodeError:
            raise Unavailable("the LLM proxy did not answer with JSON: retry") from None
        return response.status, answer if isinstance(answer, dict) else {}


def _leaf(answer: Mapping[str, Any]) -> DaarionError:
    """Returns the leaf that the proxy's envelope names."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return Unavailable("the LLM proxy refused without telling why: retry")
    leaf = _LEAVES.get(str(error.get("type")), Unavailable)
    return leaf(str(error.get("message", "the LLM proxy refused")))


def _leaves(root: type[DaarionError]) -> Iterator[type[DaarionError]]:
    for leaf in root.__subclasses__():
        yield leaf
        yield from _leaves(leaf)


_LEAVES = {leaf.type: leaf for leaf in _leaves(errors.DaarionError)}
