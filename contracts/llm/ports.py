"""Ports of the use cases.

Adapters live in providers, backends and deployments.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol

from typing_extensions import Unpack

from contracts.deadline import Deadline
from contracts.identity import Tenant
from contracts.llm.answers import LLMResponse, ProxyResponse, StreamItem, TokenUsage
from contracts.llm.listings import EngineLoad
from contracts.llm.messages import ChatMessage, ToolSpec
from contracts.llm.requests import ChatOptions
from contracts.llm.routing import Continuation, Route, Target


@dataclass(frozen=True, slots=True)
class Condition:
    """Why a call would probably fail now, or None; and the engine's load, if known."""

    not_ready: str | None = None
    load: EngineLoad | None = None


class ChatProvider(Protocol):
    """One LLM provider. Adapters inherit what they have nothing to say about.

    Raises leaves of UpstreamError, InvalidRequest, Unavailable or DeadlineExceeded.
    """

    name: str
    continuation: Continuation

    def unavailable_reason(self) -> str | None:
        """Returns why no call can succeed with this configuration (a missing key), or None."""
        return None

    def condition(self, target: Target) -> Condition:  # noqa: ARG002  # of the model asked
        """Returns the state that is known without a call, for listings and spill-over."""
        return Condition()

    def quota_left(self, target: Target) -> float | None:  # noqa: ARG002  # of the model asked
        """The share (0 to 1) that is left of the provider's own limit for the model; None if
        unknown.
        """
        return None

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        target: Target,
        deadline: Deadline,
        **options: Unpack[ChatOptions],
    ) -> LLMResponse:
        """Returns one whole answer. Cancelling the call stops the upstream."""

    def stream(
        self,
        messages: Sequence[ChatMessage],
        target: Target,
        deadline: Deadline,
        **options: Unpack[ChatOptions],
    ) -> AsyncIterator[StreamItem]:
        """Yields deltas, then exactly one StreamEnd; closing the iterator stops the upstream."""

    async def close(self) -> None:
        """Releases connections and tasks."""


class Engine(Protocol):
    """The in-cluster chat engine, reached through plain dicts in OpenAI's shapes.

    `condition` is what the last call of `stats` found.
    """

    condition: Condition

    async def awake(self, deadline: Deadline) -> None:
        """Returns when a call can be made: at once, unless the engine sleeps.

        Raises EngineUnavailable or ModelAsleep instead of waiting, as the model is configured, and
        DeadlineExceeded.
        """

    async def chat(self, body: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        """Returns a chat completion. Cancelling aborts the generation."""

    def stream(self, body: dict[str, Any], deadline: Deadline) -> AsyncIterator[dict[str, Any]]:
        """Yields chat completion chunks, the last with usage.

        Closing the iterator aborts the generation.
        """

    async def stats(self) -> EngineLoad | Literal["awake", "asleep"]:
        """Returns the engine's counters, or whether it sleeps, if it may; never wakes it.

        Raises EngineUnavailable while it is not ready.
        """


class ModelRouter(Protocol):
    """Resolves logical models."""

    def route(self, logical_model: str) -> Route:
        """Returns the route. Raises UnknownModel naming the known ones."""

    def routes(self) -> Sequence[Route]:
        """Every configured route, in the configuration's order."""


class Prices(Protocol):
    """Prices of models."""

    def cost(self, target: Target, usage: TokenUsage) -> Decimal | None:
        """Returns US dollars for `usage` at this target; None where no price is known."""


@dataclass(frozen=True)
class ModelRequest:
    """One question to the model. With a `schema` the answer is a JSON text of that shape."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    tools: Sequence[ToolSpec] = ()
    tool_choice: Literal["auto", "required"] | None = None
    schema: Mapping[str, Any] | None = None
    temperature: float | None = None


class ChatModel(Protocol):
    """The LLM proxy as other services call it."""

    async def chat(
        self, request: ModelRequest, tenant: Tenant, channel_id: str | None, deadline: Deadline
    ) -> ProxyResponse:
        """Returns the model's answer.

        Raises leaves of the error tree; ContextLengthExceeded when the prompt is too long.
        """

    async def answering(self, logical_model: str, deadline: Deadline) -> str | None:
        """Returns the provider's name of the model that would answer now, None when unknown."""
