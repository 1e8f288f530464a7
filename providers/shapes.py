"""OpenAI's chat completion JSON to our shapes and back. Pure; nothing that an upstream sends is trusted."""

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
"""Finish reasons by which upstreams say that an answer is not whole, and that it was not the request's doing."""
THOUGHT_PARTS = frozenset({"thinking", "reasoning"})
"""Types of content parts that hold what the model thinks."""
OPERATORS_FIELDS = frozenset({
    "api_base", "api_key", "api_version", "base_url", "custom_llm_provider", "extra_body", "extra_headers", "fallbacks", "headers",
    "mock_response", "model_list", "models", "organization", "provider", "route", "timeout",
})  # fmt: skip
"""Fields by which gateways (OpenRouter, LiteLLM) choose who answers, from where and under which key: for operators alone to set."""
ErrorLeaf = Callable[[object], DaarionError]
"""Makes the leaf of an error object that an upstream sent in place of an answer."""
BYTES_PER_TOKEN = 4
"""Rough size of a token in UTF-8, used only where a provider counts none; such counts are marked `estimated`."""


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

    The caller's `extra_body` gives way to `extra` (the provider's settings), and that to every field that is named here;
    who answers, from where, under which key and whether as a stream is never the caller's to say. `max_tokens_field` is the
    upstream's name of the answer's bound.
    """
    known: dict[str, Any] = dict(options)
    passed: dict[str, Any] = known.pop("extra_body", None) or {}
    if passed:
        passed = {key: value for key, value in passed.items() if key not in OPERATORS_FIELDS}
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
    """Returns a whole answer. `leaf` makes the exception of an error that stands in its place.

    Raises:
        UpstreamInvalidResponse: not a chat completion with at least one choice.
        DaarionError: what `leaf` made.
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
    """Returns the answer of these parts. Raises UpstreamInvalidResponse for values that no caller could be handed."""
    try:
        return LLMResponse(**parts)
    except ValidationError:
        raise UpstreamInvalidResponse(
            "the provider's answer is over our bounds or holds no valid text"
        ) from None


class StreamParser:
    """Turns completion chunks into deltas and remembers what ends the stream: finish reason and usage.

    `counted_at_end` says that usage came with the finish reason or after it: earlier counts are those of half an answer. Values that
    are no chunks are skipped and counted; what was lost with them shows at the end, which must be there. `texts` reads the chunks'
    JSON. `leaf` as in `parse_completion`.
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
        """Returns the delta of one chunk, or None when it carries no content (role, usage, keep-alive, nothing readable).

        Raises:
            UpstreamInvalidResponse: the provider says that it broke the answer off.
            DaarionError: the error that the provider reported inside the stream.
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
        """Whether the usage holds the number of cached tokens."""
        return self.usage is not None and self.usage.cached_tokens is not None

    @property
    def unreadable(self) -> int:
        """How many chunks and tool calls were skipped."""
        return self.skipped + self._tools.unreadable

    def end_marked(self) -> None:
        """Notes `[DONE]`. It makes an answer whole only by configuration: gateways also write it after an answer that was cut."""
        if self._done_completes and self._answered and self.finish_reason is None:
            self.finish_reason = "stop"

    def _delta(self, choice: dict[str, Any], usage: TokenUsage | None) -> StreamDelta | None:
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = choice.get("message")  # a whole answer, although a stream was asked for
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
        """Returns what a finished stream lacks, if anything: arguments for the calls that came without."""
        fragments = self._tools.without_arguments()
        return StreamDelta(tool_calls=fragments) if fragments else None

    def final_usage(self) -> TokenUsage:
        """The provider's usage; what came after it, or without any, is estimated and added."""
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
    """Returns several deltas as one, or None where none holds anything."""
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
    """Returns the counts of an OpenAI `usage` object, or None where it is absent or no counts."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    total = _count(usage.get("total_tokens")) or 0
    reasoning = _count(_member(usage.get("completion_tokens_details"), "reasoning_tokens"))
    if reasoning and total == prompt + completion + reasoning:
        completion += (
            reasoning  # xAI counts its thinking beside the answer; it is paid for like the answer
        )
    cached = _count(_member(usage.get("prompt_tokens_details"), "cached_tokens"))
    for name in (
        "prompt_cache_hit_tokens",
        "cached_tokens",
    ):  # DeepSeek's and Moonshot's names of it
        cached = _count(usage.get(name)) if cached is None else cached
    return TokenUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=max(prompt + completion, total),
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )


def larger_usage(known: TokenUsage, later: TokenUsage) -> TokenUsage:
    """Returns the larger truth of two counts of one answer: a later one may lack details, or be zero."""
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
    """Whether nothing of `known` is lost with `later`: so it is with every chunk of an engine that counts as it goes."""
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
    """Returns a rough completion count for an answer that came without usage."""
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
    """Some gateways wrap an answer, or an error, into a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _reasoning(message: dict[str, Any]) -> str | None:
    # DeepSeek and older vLLM say `reasoning_content`, newer vLLM and OpenRouter `reasoning`, Mistral a part of the content.
    field = _string(message.get("reasoning_content")) or _string(message.get("reasoning"))
    return field or _string(_joined(message.get("content"), thoughts=True))


def _text(content: object) -> str | None:
    """Text of a message; some upstreams send parts where others send a string."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return _joined(content, thoughts=False)
    return None


def _joined(parts: object, *, thoughts: bool) -> str:
    """The texts of those parts that are thoughts, or of those that are not."""
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
