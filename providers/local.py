"""The in-cluster vLLM engines, called through its deployment handle instead of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from typing_extensions import Unpack

from common.tasks import close_if_closable
from configs.llm.config import ProviderSettings
from contracts.deadline import Deadline
from contracts.errors import UpstreamInvalidResponse, UpstreamTimeout
from contracts.llm.answers import LLMResponse, StreamEnd, StreamItem
from contracts.llm.messages import ChatMessage
from contracts.llm.ports import ChatProvider, Condition
from contracts.llm.requests import ChatOptions
from contracts.llm.routing import Continuation, Target
from providers.event_stream import StreamClock
from providers.registry import ProviderResources
from providers.shapes import StreamParser, chat_body, parse_completion


class LocalProvider(ChatProvider):
    """Speaks OpenAI's shapes as plain dicts to the Engine port; aborts if the caller leaves.

    The engine reports per call whether it is ready, and has a queue and no quota.
    """

    def __init__(self, name: str, settings: ProviderSettings, resources: ProviderResources) -> None:
        self.name = name
        self._extra = settings.extra_body
        self.continuation: Continuation = settings.continuation or "vllm"
        self._engine_of = resources.engine_of

    def condition(self, target: Target) -> Condition:
        """Returns what the model's engine reported last."""
        return self._engine_of(target.name).condition

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        target: Target,
        deadline: Deadline,
        **options: Unpack[ChatOptions],
    ) -> LLMResponse:
        """Returns a whole answer. Raises EngineUnavailable, UpstreamTimeout or a kind of
        InvalidRequest.
        """
        body = chat_body(target.name, messages, options, self._extra, stream=False)
        engine = self._engine_of(target.name)
        await engine.awake(deadline)
        limit = deadline.at_most(target.timeouts.whole_s())
        try:
            async with asyncio.timeout(limit):
                completion = await engine.chat(body, deadline)
        except TimeoutError:
            raise self._timed_out(limit) from None
        return parse_completion(completion)

    async def stream(
        self,
        messages: Sequence[ChatMessage],
        target: Target,
        deadline: Deadline,
        **options: Unpack[ChatOptions],
    ) -> AsyncIterator[StreamItem]:
        """Yields deltas, then one StreamEnd. Raises as `chat`."""
        body = chat_body(target.name, messages, options, self._extra, stream=True)
        parser = StreamParser()
        engine = self._engine_of(target.name)
        await engine.awake(deadline)
        chunks = engine.stream(body, deadline)
        clock = StreamClock(target, deadline.sooner(target.timeouts.total_s))
        try:
            while True:
                try:
                    async with asyncio.timeout(clock.limit_s()):
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    raise self._timed_out(clock.bound_s) from None
                if (delta := parser.feed(chunk)) is not None:
                    clock.content()
                    yield delta
        finally:
            await close_if_closable(chunks)
        if parser.finish_reason is None:
            raise UpstreamInvalidResponse(
                "the local engine ended its stream before the answer was complete"
            )
        if (last := parser.last_delta()) is not None:
            yield last
        yield StreamEnd(finish_reason=parser.finish_reason, usage=parser.final_usage())

    def _timed_out(self, limit: float) -> UpstreamTimeout:
        return UpstreamTimeout(f"the local engine did not answer within {limit:.3g} s")


Provider = LocalProvider
"""The name that the registry looks up."""
