"""What interfaces ask for answers, and how many of these calls run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from contracts.llm.answers import ProxyResponse, StreamItem
from contracts.llm.listings import ModelList
from contracts.llm.requests import ProxyRequest
from contracts.llm.routing import Target


class KeptTarget(NamedTuple):
    """The provider and model of a cached answer."""

    provider: str
    name: str


Answerer = Target | KeptTarget
"""The physical model that answers, and its provider."""


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


class ChatGateway(Protocol):
    """Answers, whole or streamed, and the list of models.

    Gateway, CachedAnswers and LLMProxy implement it.
    """

    async def complete(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ProxyResponse:
        """Returns one whole answer. Raises leaves of the error tree."""

    async def open_stream(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ChatStream:
        """Returns a stream whose first item has arrived. Raises leaves of the error tree."""

    def models(self) -> ModelList:
        """Returns every logical model with its availability."""


@dataclass(slots=True)
class Load:
    """Counts the running calls of this process that a caller waits for."""

    calls: int = 0


class Gateway:
    """Counts the calls that callers wait for. Implements ChatGateway around another one.

    `load` is given from outside, so that it outlives a reload.
    """

    def __init__(self, answers: ChatGateway, load: Load) -> None:
        self._answers = answers
        self._load = load

    async def complete(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ProxyResponse:
        """Returns one whole answer. Raises as the inner gateway."""
        self._load.calls += 1
        try:
            return await self._answers.complete(request, request_id, credential=credential)
        finally:
            self._load.calls -= 1

    async def open_stream(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ChatStream:
        """Returns a stream, which counts until it is closed. Raises as the inner gateway."""
        self._load.calls += 1
        try:
            opened = await self._answers.open_stream(request, request_id, credential=credential)
        except BaseException:
            self._load.calls -= 1
            raise
        return WrappedStream(opened, closed=self._ended)

    def models(self) -> ModelList:
        """Returns every logical model with its availability."""
        return self._answers.models()

    def _ended(self) -> None:
        self._load.calls -= 1


class WrappedStream:
    """A stream around another one: with its `items` or those given, and `closed` once at its end.

    `closed` is called before the inner stream is closed.
    """

    def __init__(
        self,
        inner: ChatStream,
        items: AsyncIterator[StreamItem] | None = None,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner = inner
        self._items = items
        self._closed: Callable[[], None] | None = closed

    @property
    def target(self) -> Answerer:
        return self._inner.target

    def items(self) -> AsyncIterator[StreamItem]:
        return self._inner.items() if self._items is None else self._items

    async def close(self) -> None:
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()
        await self._inner.close()
