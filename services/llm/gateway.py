"""What interfaces ask for answers, and how many of these calls run."""

from __future__ import annotations

from collections.abc import AsyncIterator
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

    CachedAnswers and LLMProxy implement it.
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
    """How many calls of this process a caller waits for; it outlives a reload."""

    calls: int = 0
