"""The vLLM engine below `LocalLLM`, with plain data as requests and answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from deployments.engines.errors import translated, translated_response
from deployments.engines.ray_patches import CountedEngine
from deployments.engines.requests import is_structured

_DATA = "data: "
_DONE = "[DONE]"
_ERROR = '{"error"'


class PlainEngine(CountedEngine):
    """One engine with its model; requests and answers are OpenAI's JSON as dicts and strings."""

    @property
    def unfinished(self) -> int:
        """Requests in the engine, running or waiting."""
        return (
            int(self._engine_client.get_num_unfinished_requests())
            if self._engine_client is not None
            else 0
        )

    @property
    def dead(self) -> bool:
        return self._engine_client is None or bool(self._engine_client.errored)

    async def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns a chat completion. Cancelling the task aborts the request in the engine.

        Raises:
            DaarionError: a leaf, see `errors.translated`.
        """
        answer = await self._create(request)
        dumped: dict[str, Any] = answer.model_dump(mode="json", exclude_none=True)
        return dumped

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[str]:
        """Yields completion chunks as JSON text, one per token. Closing the iterator aborts them.

        Raises:
            DaarionError: a leaf, before the first chunk or in the middle.
        """
        structured = is_structured(request)
        events = await self._create(request)
        try:
            async for event in events:
                text = event.removeprefix(_DATA).rstrip()
                if text.startswith(_ERROR):
                    raise translated_response(
                        ErrorResponse.model_validate_json(text), structured=structured
                    )
                if text != _DONE:
                    yield text
        except Exception as error:  # noqa: BLE001  # translated, whatever it is
            raise translated(error, structured=structured) from None
        finally:
            await events.aclose()

    async def _create(self, request: dict[str, Any]) -> Any:
        try:
            answer = await self._oai_serving_chat.create_chat_completion(
                ChatCompletionRequest.model_validate(request)
            )
        except Exception as error:  # noqa: BLE001  # translated, whatever it is
            raise translated(error, structured=is_structured(request)) from None
        if isinstance(answer, ErrorResponse):
            raise translated_response(answer, structured=is_structured(request))
        return answer
