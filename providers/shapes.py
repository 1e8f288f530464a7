"""Converts OpenAI's chat completions to our shapes and back. Pure; upstreams are not trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from contracts.errors import DaarionError, UpstreamInvalidResponse
from contracts.llm.answers import LLMResponse, StreamDelta, TokenUsage
from contracts.llm.messages import ChatMessage
from contracts.llm.requests import ChatOptions
from providers.errors import in_band_error, reported_error
from providers.tool_fragments import ToolFragments, parse_tool_calls
from providers.upstream_json import JsonTexts

INTERRUPTED = frozenset(
    {
        "abort",
        "aborted",
        "error",
        "insufficient_system_resource",
        "malformed_function_call",
        "network_error",
    }
)
"""Finish reasons of answers that upstreams broke off by no fault of the request."""
THOUGHT_PARTS = frozenset({"thinking", "reasoning"})
"""Types of content parts that hold reasoning."""
OPERATOR_FIELDS = frozenset({
    "api_base", "api_key", "api_version", "base_url", "custom_llm_provider", "extra_body",
    "extra_headers", "fallbacks", "headers", "mock_response", "model_list", "models",
    "organization", "provider", "route", "timeout",
})  # fmt: skip
"""Fields by which gateways (OpenRouter, LiteLLM) choose provider, address and key: for operators
only.
"""
ErrorLeaf = Callable[[object], DaarionError]
"""Returns the error for an error object that an upstream sent instead of an answer."""
BYTES_PER_TOKEN = 4
"""Rough size of a token in UTF-8, used where a provider sends no usage; marked `estimated`."""


def chat_body(
    model: str,
    messages: Sequence[ChatMessage],
    options: ChatOptions,
    extra: Mapping[str, Any],
    *,
    stream: bool,
    max_tokens_field: str = "max_tokens",
) -> dict[str, Any]:
    """Returns the request body of `POST /chat/completions`.

    `extra` (the provider's settings) wins over the caller's `extra_body`, and the named fields win
    over both. Callers never choose provider, address, key or streaming. `max_tokens_field` is the
    upstream's name for `max_tokens`.
    """
    known: dict[str, Any] = dict(options)
    passed: dict[str, Any] = known.pop("extra_body", None) or {}
    if passed:
        passed = {key: value for key, value in passed.items() if key not in OPERATOR_FIELDS}
    body: dict[str, Any] = {**passed, **extra, **known, "model": model, "messages": messages}
    for key in ("stream", "stream_options"):
        body.pop(key, None)
    if max_tokens_field != "max_tokens" and "max_tokens" in body:
        body[max_tokens_field] = body.pop("max_tokens")
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return body


def parse_completion(payload: object, leaf: ErrorLeaf = in_band_error) -> LLMResponse:
    """Returns a whole answer. `leaf` returns the exception for an error sent instead of one.

    Raises:
        UpstreamInvalidResponse: not a chat completion with at least one choice.
        DaarionError: from `leaf`.
    """
    payload = _alone(payload)
    if not isinstance(payload, dict):
        raise UpstreamInvalidResponse("the provider's answer is not a JSON object")
    if (error := reported_error(payload)) is not None:
        raise leaf(error)
    choice = _first_choice(payload)
    finish_reason = _finish_reason(choice, leaf)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise UpstreamInvalidResponse("the provider's answer holds no message")
    content, refusal = _text(message.get("content")), _string(message.get("refusal"))
    tool_calls = parse_tool_calls(message.get("tool_calls"))
    if content is None and tool_calls is None and message.get("content", "") is not None:
        raise UpstreamInvalidResponse("the provider's answer holds neither text nor tool calls")
    reasoning = _reasoning(message)
    usage = parse_usage(payload.get("usage"))
    if usage is None:
        usage = estimate_usage(content or refusal or "", reasoning or "")
    return whole_answer(
        content=content or "",
        usage=usage,
        finish_reason=finish_reason,
        tool_calls=tool_calls,
        reasoning=reasoning,
        refusal=refusal,
    )


def whole_answer(**parts: Any) -> LLMResponse:
    """Returns the answer with these fields. Raises UpstreamInvalidResponse for invalid values."""
    try:
        return LLMResponse(**parts)
    except ValidationError:
        raise UpstreamInvalidResponse(
            "the provider's answer is over our bounds or holds no valid text"
        ) from None


class StreamParser:
    """Turns completion chunks into deltas and keeps finish reason and usage.

    `counted_at_end`: usage came with the finish reason or later; earlier counts are partial. Values
    that are no chunks are counted in `skipped`; the finish reason shows whether the answer is
    complete nevertheless. `texts` decodes the chunks' JSON. `leaf` as in `parse_completion`.
    """

    def __init__(self, *, done_completes: bool = False, leaf: ErrorLeaf = in_band_error) -> None:
        self._done_completes = done_completes
        self._leaf = leaf
        self._tools = ToolFragments()
        self.finish_reason: str | None = None
        self.usage: TokenUsage | None = None
        self.counted_at_end = self.has_content = False
        self.skipped = 0
        self.texts = JsonTexts()
        self._unbilled_bytes = 0
        self._answered = False

    def feed(self, chunk: object) -> StreamDelta | None:
        """Returns the delta of one chunk, or None without content (role, usage, keep-alive,
        unreadable).

        Raises:
            UpstreamInvalidResponse: the provider says that it broke the answer off.
            DaarionError: the provider reported an error inside the stream.
        """
        if not isinstance(chunk, dict):
            chunk = _alone(chunk)
            if not isinstance(chunk, dict):
                self.skipped += 1
                return None
        choices = chunk.get("choices")
        if not choices or chunk.get("error"):
            if (error := reported_error(chunk)) is not None:
                raise self._leaf(error)
            self._keep(self._counted(chunk.get("usage")))
            return None
        choice = choices[0] if isinstance(choices, list) else None
        if not isinstance(choice, dict):
            self.skipped += 1
            return None
        self._answered = True
        self.finish_reason = _finish_reason(choice, self._leaf) or self.finish_reason
        counts = chunk.get("usage") or choice.get("usage")  # Moonshot counts inside the choice
        usage = self._counted(counts) if counts else None
        delta = self._delta(choice, usage)
        self._keep(usage)
        return delta

    def _keep(self, usage: TokenUsage | None) -> None:
        if usage is not None:
            self.usage, self._unbilled_bytes = usage, 0
            self.counted_at_end |= self.finish_reason is not None

    def _counted(self, counts: object) -> TokenUsage | None:
        usage = parse_usage(counts)
        return usage if usage is None or self.usage is None else larger_usage(self.usage, usage)

    @property
    def has_details(self) -> bool:
        """Whether the usage includes cached tokens."""
        return self.usage is not None and self.usage.cached_tokens is not None

    @property
    def unreadable(self) -> int:
        """The number of chunks and tool calls that were skipped."""
        return self.skipped + self._tools.unreadable

    def end_marked(self) -> None:
        """Notes `[DONE]`, which completes an answer only by configuration.

        Gateways also send it after an answer that was cut off.
        """
        if self._done_completes and self._answered and self.finish_reason is None:
            self.finish_reason = "stop"

    def _delta(self, choice: dict[str, Any], usage: TokenUsage | None) -> StreamDelta | None:
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = choice.get("message")  # a whole answer instead of a stream
            if not isinstance(delta, dict):
                return None
        content, reasoning, refusal = (
            _text(delta.get("content")),
            _reasoning(delta),
            _string(delta.get("refusal")),
        )
        tool_calls = self._tools.feed(fragments) if (fragments := delta.get("tool_calls")) else None
        if not content and not reasoning and not tool_calls and not refusal:
            return None
        self.has_content = True
        for text in (content, reasoning, refusal):
            if text:
                self._unbilled_bytes += len(text) if text.isascii() else len(text.encode())
        return StreamDelta(
            content=content or None,
            reasoning=reasoning or None,
            tool_calls=tool_calls or None,
            refusal=refusal,
            usage=usage,
        )

    def last_delta(self) -> StreamDelta | None:
        """Returns, at the end of the stream, the arguments of calls that were sent without."""
        fragments = self._tools.without_arguments()
        return StreamDelta(tool_calls=fragments) if fragments else None

    def final_usage(self) -> TokenUsage:
        """Returns the provider's usage; content after it, or without any usage, is estimated and
        added.
        """
        more = -(-self._unbilled_bytes // BYTES_PER_TOKEN)
        if self.usage is None:
            return TokenUsage(completion_tokens=more, total_tokens=more, estimated=True)
        if not more:
            return self.usage
        counts = {
            "completion_tokens": self.usage.completion_tokens + more,
            "total_tokens": self.usage.total_tokens + more,
        }
        return self.usage.model_copy(update={**counts, "estimated": True})


def joined(deltas: Sequence[StreamDelta | None]) -> StreamDelta | None:
    """Returns several deltas as one, or None if all are None."""
    found = [delta for delta in deltas if delta is not None]
    if len(found) < 2:
        return found[0] if found else None
    texts = {
        name: "".join(getattr(delta, name) or "" for delta in found) or None
        for name in ("content", "reasoning", "refusal")
    }
    return StreamDelta(
        **texts,
        tool_calls=[one for delta in found for one in delta.tool_calls or ()] or None,
        usage=found[-1].usage,
    )


def parse_usage(usage: object) -> TokenUsage | None:
    """Returns the counts of an OpenAI `usage` object, or None if it holds none."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    total = _count(usage.get("total_tokens")) or 0
    reasoning = _count(_member(usage.get("completion_tokens_details"), "reasoning_tokens"))
    if reasoning and total == prompt + completion + reasoning:
        completion += reasoning  # xAI counts it beside the answer, and charges it like the answer
    cached = _count(_member(usage.get("prompt_tokens_details"), "cached_tokens"))
    for name in ("prompt_cache_hit_tokens", "cached_tokens"):  # DeepSeek's and Moonshot's names
        cached = _count(usage.get(name)) if cached is None else cached
    return TokenUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=max(prompt + completion, total),
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )


def larger_usage(known: TokenUsage, later: TokenUsage) -> TokenUsage:
    """Returns the larger of two counts of one answer: a later one may lack details, or be zero."""
    if _covers(later, known):
        return later
    prompt, completion = (
        max(known.prompt_tokens, later.prompt_tokens),
        max(known.completion_tokens, later.completion_tokens),
    )
    return TokenUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=max(known.total_tokens, later.total_tokens, prompt + completion),
        cached_tokens=_larger(known.cached_tokens, later.cached_tokens),
        reasoning_tokens=_larger(known.reasoning_tokens, later.reasoning_tokens),
    )


def _covers(later: TokenUsage, known: TokenUsage) -> bool:
    """Whether `later` loses nothing of `known`, as with engines that count in every chunk."""
    return (
        later.prompt_tokens >= known.prompt_tokens
        and later.completion_tokens >= known.completion_tokens
        and later.total_tokens >= known.total_tokens
        and (known.cached_tokens is None or (later.cached_tokens or 0) >= known.cached_tokens)
        and (
            known.reasoning_tokens is None
            or (later.reasoning_tokens or 0) >= known.reasoning_tokens
        )
    )


def _larger(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def estimate_usage(content: str, reasoning: str) -> TokenUsage:
    """Returns a rough completion count for an answer without usage."""
    completion = -(-len((content + reasoning).encode()) // BYTES_PER_TOKEN)
    return TokenUsage(completion_tokens=completion, total_tokens=completion, estimated=True)


def _first_choice(payload: dict[str, Any]) -> dict[str, Any]:
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UpstreamInvalidResponse("the provider's answer holds no choices")
    return choices[0]


def _finish_reason(choice: dict[str, Any], leaf: ErrorLeaf) -> str | None:
    reason = _string(choice.get("finish_reason"))
    if reason is not None and reason.lower() in INTERRUPTED:
        if choice.get("error"):
            raise leaf(choice["error"])
        raise UpstreamInvalidResponse(
            f"the provider broke its answer off (finish reason `{reason}`)"
        )
    return reason


def _alone(value: object) -> object:
    """Unwraps a list of one, in which some gateways send an answer or an error."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _reasoning(message: dict[str, Any]) -> str | None:
    # DeepSeek and older vLLM send `reasoning_content`, newer vLLM and OpenRouter `reasoning`,
    # Mistral a part of the content.
    field = _string(message.get("reasoning_content")) or _string(message.get("reasoning"))
    return field or _string(_joined(message.get("content"), thoughts=True))


def _text(content: object) -> str | None:
    """Returns the text of a message; some upstreams send parts instead of a string."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return _joined(content, thoughts=False)
    return None


def _joined(parts: object, *, thoughts: bool) -> str:
    """Returns the texts of the parts that are thoughts, or of those that are not."""
    if not isinstance(parts, list):
        return ""
    chosen = [part for part in parts if (_member(part, "type") in THOUGHT_PARTS) is thoughts]
    texts = [
        _member(part, "text") or _joined(_member(part, "thinking"), thoughts=False)
        for part in chosen
    ]
    return "".join(text for text in texts if isinstance(text, str))


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object) -> int | None:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
        else None
    )


def _member(value: object, key: str) -> object:
    return cast("dict[str, object]", value).get(key) if isinstance(value, dict) else None
