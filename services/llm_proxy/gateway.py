"""What the ways in ask of the LLM proxy, whatever lies before it: a cache, idempotency, nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from contracts.llm import ModelList, ProxyRequest, ProxyResponse, StreamItem
from contracts.routing import Target


class ChatStream(Protocol):
    """A stream that has begun. Iterate it once, and close it however that ends. `target` is who answers."""

    @property
    def target(self) -> Target: ...

    def items(self) -> AsyncIterator[StreamItem]:
        """Yields every item, the last of which is a StreamEnd. Raises the leaf of a failure half-way."""

    async def close(self) -> None:
        """Stops what feeds the stream, and settles the call."""


class ChatGateway(Protocol):
    """Answers, whole or streamed, and the models that give them. `LLMProxy` is one."""

    async def complete(self, request: ProxyRequest, request_id: str) -> ProxyResponse:
        """Returns one whole answer. Raises leaves of the error tree."""

    async def open_stream(self, request: ProxyRequest, request_id: str) -> ChatStream:
        """Returns a stream whose first item has already arrived. Raises leaves of the error tree."""

    def models(self) -> ModelList:
        """Returns every logical model with its availability."""
