"""The vLLM engine below `LocalLLM`: Ray's integration, asked and answered in plain data, with counters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.platforms import current_platform

from deployments.engines.counters import EngineCounters
from deployments.engines.errors import translated, translated_response
from deployments.engines.requests import is_structured

_DATA = "data: "
_DONE = "[DONE]"
_ERROR = '{"error"'


class PlainEngine(VLLMEngine):  # type: ignore[misc]  # Ray is not typed
    """One engine process with its model; requests and answers are OpenAI's JSON as dicts and strings."""

    def __init__(self, llm_config: LLMConfig) -> None:
        super().__init__(llm_config)
        self._counters: EngineCounters | None = None

    def _start_async_llm_engine(
        self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any
    ) -> Any:
        # On a CPU Ray asks for a worker process beside the engine process: the libraries would be imported once more
        # (10 s, 0.6 GB) for nothing, since there is one worker.
        if current_platform.is_cpu() and vllm_engine_config.parallel_config.world_size == 1:
            vllm_engine_config.parallel_config.distributed_executor_backend = "uni"
        client = super()._start_async_llm_engine(
            vllm_engine_args, vllm_engine_config, placement_group
        )
        self._counters = EngineCounters(vllm_engine_config, client.engine_core.engine_ranks_managed)
        client.logger_manager.stat_loggers.append(self._counters)
        return client

    @property
    def counters(self) -> EngineCounters:
        """Available once the engine has started."""
        assert self._counters is not None
        return self._counters

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
        """Yields completion chunks as JSON text, one a token. Closing the iterator aborts the request in the engine.

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
        except Exception as error:  # noqa: BLE001  # every failure leaves as a leaf of the error tree
            raise translated(error, structured=structured) from None
        finally:
            await events.aclose()

    async def _create(self, request: dict[str, Any]) -> Any:
        try:
            answer = await self._oai_serving_chat.create_chat_completion(
                ChatCompletionRequest.model_validate(request)
            )
        except Exception as error:  # noqa: BLE001  # every failure leaves as a leaf of the error tree
            raise translated(error, structured=is_structured(request)) from None
        if isinstance(answer, ErrorResponse):
            raise translated_response(answer, structured=is_structured(request))
        return answer
