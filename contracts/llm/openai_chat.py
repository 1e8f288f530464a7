"""OpenAI's shapes of `/internal/llm/v1/chat/completions` and `/v1/models`, over our own."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from contracts.identity import Identifier
from contracts.llm.answers import Attempt, ProxyResponse, StreamDelta, StreamEnd, TokenUsage
from contracts.llm.listings import ModelInfo
from contracts.llm.requests import CallMetadata, ProxyRequest
from contracts.shapes import Frozen

# What would change the shape of the answer in a way that an answer of ours cannot have.
_NOT_GIVEN = {
    "logprobs": "log probabilities are not given: leave the field out",
    "top_logprobs": "log probabilities are not given: leave the field out",
    "audio": "answers are text: leave the field out",
    "functions": "is obsolete: use `tools`",
    "function_call": "is obsolete: use `tool_choice`",
}


def _only_one(value: int) -> int:
    if value != 1:
        raise ValueError("one choice a request: send n = 1, or leave the field out")
    return value


NamedId = Annotated[
    Identifier | None, BeforeValidator(lambda value: None if value == "" else value)
]
"""An id that may be missing; clients with a template for `metadata` send it empty."""


class Identity(Frozen):
    """What `metadata` says of the caller; OpenAI's own keys beside it are ignored."""

    agent_id: NamedId = None
    microdao_id: NamedId = None
    channel_id: NamedId = None


class StreamOptions(Frozen):
    """`include_usage` asks for a further chunk with the usage of the whole call."""

    include_usage: bool = False


class ChatCompletionRequest(ProxyRequest):
    """Body of `POST /v1/chat/completions`.

    Fields that are not named here pass through to upstreams that take them.

    `max_completion_tokens` is another name of `max_tokens` and wins over it. `cache` and
    `timeout_s` are ours.
    """

    model_config = ConfigDict(extra="allow")

    # OpenAI's clients send none, or keys of their own.
    metadata: Identity | None = None  # type: ignore[assignment]
    n: Annotated[int, AfterValidator(_only_one)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _answerable(self) -> ChatCompletionRequest:
        for name, value in (self.model_extra or {}).items():
            if value and name in _NOT_GIVEN:
                raise ValueError(f"{name}: {_NOT_GIVEN[name]}")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with `stream: true`")
        return self

    def to_proxy(self, caller: CallMetadata) -> ProxyRequest:
        """Returns the request as `/proxy` takes it; unknown fields are passed through.

        Raises:
            InvalidRequest: see `checked_extra`.
        """
        fields = {
            name: getattr(self, name) for name in ProxyRequest.model_fields if name != "metadata"
        }
        if self.max_completion_tokens is not None:
            fields["max_tokens"] = self.max_completion_tokens
        # Everything was validated with this body.
        request = ProxyRequest.model_construct(**fields, metadata=caller)
        request.pass_through(
            {
                name: value
                for name, value in (self.model_extra or {}).items()
                if value is not None and name not in _NOT_GIVEN
            }
        )
        return request

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class PromptTokensDetails(BaseModel):
    """What of the prompt the provider had in its cache."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """What of the completion was thinking aloud."""

    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """Tokens of one call; `estimated` is ours and marks a count that the provider did not give."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    estimated: bool | None = None


class CompletionMessage(BaseModel):
    """The answer. `content` is null where tool calls stand in its place."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class CompletionChoice(BaseModel):
    """The one choice."""

    index: Literal[0] = 0
    message: CompletionMessage
    logprobs: None = None
    finish_reason: str


class ChatCompletion(BaseModel):
    """A whole answer.

    `model` names who really answered; `provider`, `cached` and `attempts` are ours.
    """

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage
    provider: str
    cached: bool | None = None
    attempts: list[dict[str, Any]] | None = None


class ModelCard(BaseModel):
    """A logical model, as `/v1/models` lists it; `available` is ours."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    available: bool = True


class ModelCards(BaseModel):
    """Body of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def completion_of(answer: ProxyResponse, request_id: str) -> dict[str, Any]:
    """Returns the body of a whole answer, with OpenAI's nulls and without ours."""
    calls = answer.tool_calls or None
    content = answer.content or (None if calls or answer.refusal else "")
    message = {"role": "assistant", "content": content, "refusal": answer.refusal} | _given(
        reasoning_content=answer.reasoning_content, tool_calls=calls
    )
    reason = answer.finish_reason or ("tool_calls" if calls else "stop")
    return {
        "id": completion_id(request_id),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer.model_resolved,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": usage_of(answer.usage),
        "provider": answer.provider,
    } | _given(cached=answer.cached, attempts=_dumped(answer.attempts))


def completion_id(request_id: str) -> str:
    """Returns the id of a completion: the request's own, so that a client's log leads to ours."""
    return f"chatcmpl-{request_id}"


def usage_of(usage: TokenUsage) -> dict[str, Any]:
    """Returns OpenAI's `usage` object."""
    cached, reasoning = usage.cached_tokens, usage.reasoning_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    } | _given(
        prompt_tokens_details=None if cached is None else {"cached_tokens": cached},
        completion_tokens_details=None if reasoning is None else {"reasoning_tokens": reasoning},
        estimated=usage.estimated or None,
    )


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _dumped(attempts: list[Attempt] | None) -> list[dict[str, Any]] | None:
    return None if attempts is None else [attempt.model_dump() for attempt in attempts]


class ChunkWriter:
    """Turns a stream's items into completion chunks, as plain values. One for each stream."""

    def __init__(self, request_id: str, model: str, *, include_usage: bool) -> None:
        self._head = {
            "id": completion_id(request_id),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage

    def first(self) -> dict[str, Any]:
        """The chunk that names the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, delta: StreamDelta) -> dict[str, Any]:
        """The chunk of one piece of the answer."""
        return self._chunk(
            _given(
                content=delta.content,
                reasoning_content=delta.reasoning,
                tool_calls=delta.tool_calls,
                refusal=delta.refusal,
            )
        )

    def last(self, end: StreamEnd, model: str, provider: str) -> list[dict[str, Any]]:
        """The chunk with the finish reason and, where it was asked for, the one with the usage."""
        self._head["model"] = model
        ours = _given(
            provider=provider,
            cached=end.cached,
            written_by=end.written_by,
            attempts=_dumped(end.attempts),
        )
        chunks = [self._chunk({}, end.finish_reason) | ours]
        if self._include_usage:
            chunks.append({**self._head, "choices": [], "usage": usage_of(end.usage)})
        return chunks

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            **self._head,
            "choices": [
                {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            ],
        }
        if self._include_usage:
            chunk["usage"] = None
        return chunk


def cards_of(models: Iterable[ModelInfo], embedding_model: tuple[str, str] | None) -> ModelCards:
    """Returns every logical model and the embedding model, given by its name and owner."""
    cards = [
        ModelCard(id=model.id, owned_by=model.provider, available=model.available)
        for model in models
    ]
    if embedding_model is not None and embedding_model[0] not in {card.id for card in cards}:
        cards.append(ModelCard(id=embedding_model[0], owned_by=embedding_model[1]))
    return ModelCards(data=cards)
