"""Streams of the response cache: one records a passing stream, one replays a cached answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from contracts.llm.answers import ProxyResponse, StreamDelta, StreamEnd, StreamItem, join_fragment
from contracts.llm.messages import ToolCall

MAX_RECORDED_CHARS = 4_000_000

_CALLS = TypeAdapter(list[ToolCall])


class Answerer(Protocol):
    """The physical model that answers, and its provider."""

    @property
    def provider(self) -> str: ...
    @property
    def name(self) -> str: ...


class ChatStream(Protocol):
    """A stream that has begun. Iterate it once, and close it however that ends."""

    @property
    def target(self) -> Answerer: ...

    def items(self) -> AsyncIterator[StreamItem]:
        """Yields every item, the last of which is a StreamEnd.

        Raises the error of a stream that breaks.
        """

    async def close(self) -> None:
        """Stops the upstream and settles the call."""


@dataclass(frozen=True, slots=True)
class KeptTarget:
    """The provider and model of a cached answer."""

    provider: str
    name: str


class ReplayedStream:
    """A cached answer as a stream: one delta, then the end."""

    def __init__(self, answer: ProxyResponse) -> None:
        self._answer = answer
        self.target: Answerer = KeptTarget(answer.provider, answer.model_resolved)

    async def items(self) -> AsyncIterator[StreamItem]:
        """Yields one delta, unless the answer is empty, and the end."""
        answer = self._answer
        fragments = [{"index": index, **call} for index, call in enumerate(answer.tool_calls or [])]
        if answer.content or answer.reasoning_content or fragments:  # a refusal is never cached
            yield StreamDelta(
                content=answer.content or None,
                reasoning=answer.reasoning_content,
                tool_calls=fragments or None,
            )
        yield StreamEnd(
            finish_reason=answer.finish_reason or "stop", usage=answer.usage, cached=True
        )

    async def close(self) -> None:
        """Does nothing: there is no upstream."""


class RecordedStream:
    """Yields a stream's items; at its regular end it passes the whole answer to `keep`."""

    def __init__(self, inner: ChatStream, keep: Callable[[ProxyResponse], None]) -> None:
        self._inner = inner
        self._keep = keep

    @property
    def target(self) -> Answerer:
        """The inner stream's target."""
        return self._inner.target

    async def items(self) -> AsyncIterator[StreamItem]:
        """Yields what the inner stream yields."""
        parts = _AnswerParts()
        async for item in self._inner.items():
            if isinstance(item, StreamDelta):
                parts.add(item)
            elif (answer := parts.answer(item, self.target)) is not None:
                self._keep(answer)
            yield item

    async def close(self) -> None:
        """Closes the inner stream."""
        await self._inner.close()


class _AnswerParts:
    """Joins deltas of up to `MAX_RECORDED_CHARS` in all."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._refused = False
        self._calls: dict[int, dict[str, Any]] = {}
        self._chars = 0

    def add(self, delta: StreamDelta) -> None:
        """Adds one piece."""
        fragments = delta.tool_calls or []
        self._chars += (
            len(delta.content or "")
            + len(delta.reasoning or "")
            + sum(len(str(fragment)) for fragment in fragments)
        )
        if self._chars > MAX_RECORDED_CHARS:
            return
        self._refused |= delta.refusal is not None
        self._content.append(delta.content or "")
        self._reasoning.append(delta.reasoning or "")
        for fragment in fragments:
            join_fragment(self._calls, fragment)

    def answer(self, end: StreamEnd, target: Answerer) -> ProxyResponse | None:
        """Returns the whole answer; None for a refusal, one too large, or unreadable tool calls."""
        if self._chars > MAX_RECORDED_CHARS or self._refused:
            return None
        try:
            calls = _CALLS.validate_python([self._calls[index] for index in sorted(self._calls)])
        except ValidationError:
            return None
        return ProxyResponse(
            content="".join(self._content),
            usage=end.usage,
            provider=target.provider,
            model_resolved=target.name,
            tool_calls=calls or None,
            reasoning_content="".join(self._reasoning) or None,
            finish_reason=end.finish_reason,
        )
