"""OpenAI's chat completion JSON to our shapes and back. Pure; nothing that an upstream sends is trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from contracts.errors import UpstreamInvalidResponse
from contracts.llm import ChatMessage, ChatOptions, LLMResponse, StreamDelta, TokenUsage, ToolCall
from providers.upstream_errors import in_band_error

INTERRUPTED = frozenset({"abort", "aborted", "error", "insufficient_system_resource"})
"""Finish reasons by which upstreams say that an answer is not whole, and that it was not the request's doing."""
THOUGHT_PARTS = frozenset({"thinking", "reasoning"})
"""Types of content parts that hold what the model thinks."""
OPERATORS_FIELDS = frozenset({
    "api_base", "api_key", "api_version", "base_url", "custom_llm_provider", "extra_body", "extra_headers", "fallbacks", "headers",
    "mock_response", "model_list", "models", "organization", "provider", "route", "timeout",
})  # fmt: skip
"""Fields by which gateways (OpenRouter, LiteLLM) are told who answers, from where and under which key: the provider's settings alone."""
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


def parse_completion(payload: object) -> LLMResponse:
    """Returns a whole answer.

    Raises:
        UpstreamInvalidResponse: not a chat completion with at least one choice, or an error in a 200.
    """
    if not isinstance(payload, dict):
        raise UpstreamInvalidResponse("the provider's answer is not a JSON object")
    choice = _first_choice(payload)
    finish_reason = _finish_reason(choice)
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
        content=content or "", usage=usage, finish_reason=finish_reason, tool_calls=tool_calls, reasoning=reasoning, refusal=refusal
    )


def whole_answer(**parts: Any) -> LLMResponse:
    """Returns the answer of these parts. Raises UpstreamInvalidResponse for values that no caller could be handed."""
    try:
        return LLMResponse(**parts)
    except ValidationError:
        raise UpstreamInvalidResponse("the provider's answer is over our bounds or holds no valid text") from None


class StreamParser:
    """Turns completion chunks into deltas and remembers what ends the stream: finish reason and usage.

    `told_at_end` says that usage came with the finish reason or after it: earlier counts are those of half an answer.
    """

    def __init__(self, *, done_completes: bool = False) -> None:
        self._done_completes = done_completes
        self.finish_reason: str | None = None
        self.usage: TokenUsage | None = None
        self.told_at_end = False
        self._unbilled_bytes = 0
        self._answered = False

    def feed(self, chunk: object) -> StreamDelta | None:
        """Returns the delta of one chunk, or None when it carries no content (role, usage, keep-alive).

        Raises:
            UpstreamInvalidResponse: not a chunk.
            DaarionError: the error that the provider reported inside the stream.
        """
        if not isinstance(chunk, dict):
            raise UpstreamInvalidResponse("the provider's stream holds an event that is not a JSON object")
        if chunk.get("error"):
            raise in_band_error(chunk["error"])
        told = parse_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        if not choices:
            self._told(told)
            return None
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            raise UpstreamInvalidResponse("the provider's stream holds a malformed choice")
        self._answered = True
        self.finish_reason = _finish_reason(choices[0]) or self.finish_reason
        delta = self._delta(choices[0].get("delta"), told)
        self._told(told)
        return delta

    def _told(self, usage: TokenUsage | None) -> None:
        if usage is not None:
            self.usage, self._unbilled_bytes = usage, 0
            self.told_at_end |= self.finish_reason is not None

    def end_marked(self) -> None:
        """Notes `[DONE]`. It makes an answer whole only by configuration: gateways also write it after an answer that was cut."""
        if self._done_completes and self._answered and self.finish_reason is None:
            self.finish_reason = "stop"

    def _delta(self, delta: object, told: TokenUsage | None) -> StreamDelta | None:
        if not isinstance(delta, dict):
            return None
        content, reasoning, refusal = _text(delta.get("content")), _reasoning(delta), _string(delta.get("refusal"))
        fragments = delta.get("tool_calls")
        tool_calls = fragments if isinstance(fragments, list) and fragments else None
        if tool_calls and not all(isinstance(fragment, dict) for fragment in tool_calls):
            raise UpstreamInvalidResponse("the provider's stream holds a malformed tool call")
        if not content and not reasoning and not tool_calls and not refusal:
            return None
        self._unbilled_bytes += sum(len(text.encode()) for text in (content, reasoning, refusal) if text)
        return StreamDelta(content=content or None, reasoning=reasoning or None, tool_calls=tool_calls, refusal=refusal, usage=told)

    def final_usage(self) -> TokenUsage:
        """The provider's usage; what came after it, or without any, is estimated and added."""
        more = -(-self._unbilled_bytes // BYTES_PER_TOKEN)
        if self.usage is None:
            return TokenUsage(completion_tokens=more, total_tokens=more, estimated=True)
        if not more:
            return self.usage
        counts = {"completion_tokens": self.usage.completion_tokens + more, "total_tokens": self.usage.total_tokens + more}
        return self.usage.model_copy(update={**counts, "estimated": True})


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
        completion += reasoning  # xAI counts its thinking beside the answer; it is paid for like the answer
    cached = _count(_member(usage.get("prompt_tokens_details"), "cached_tokens"))
    if cached is None:
        cached = _count(usage.get("prompt_cache_hit_tokens"))  # DeepSeek's name for it
    return TokenUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=max(prompt + completion, total),
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )


def estimate_usage(content: str, reasoning: str) -> TokenUsage:
    """Returns a rough completion count for an answer that came without usage."""
    completion = -(-len((content + reasoning).encode()) // BYTES_PER_TOKEN)
    return TokenUsage(completion_tokens=completion, total_tokens=completion, estimated=True)


def _first_choice(payload: dict[str, Any]) -> dict[str, Any]:
    if payload.get("error"):
        raise in_band_error(payload["error"])
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UpstreamInvalidResponse("the provider's answer holds no choices")
    return choices[0]


def _finish_reason(choice: dict[str, Any]) -> str | None:
    reason = _string(choice.get("finish_reason"))
    if reason in INTERRUPTED:
        raise UpstreamInvalidResponse(f"the provider broke its answer off (finish reason `{reason}`)")
    return reason


def parse_tool_calls(value: object) -> list[ToolCall] | None:
    """Returns the calls of a whole answer, or None without any. Raises UpstreamInvalidResponse for malformed ones."""
    if not value:
        return None
    if not isinstance(value, list):
        raise UpstreamInvalidResponse("the provider's answer holds malformed tool calls")
    return [_tool_call(call, index) for index, call in enumerate(value)]


def _tool_call(call: object, index: int) -> ToolCall:
    function = _member(call, "function")
    name, arguments = _member(function, "name"), _member(function, "arguments")
    if not isinstance(name, str) or not name or not isinstance(arguments, str):
        raise UpstreamInvalidResponse("the provider's answer holds a malformed tool call")
    identifier = _member(call, "id")
    return ToolCall(
        id=identifier if isinstance(identifier, str) and identifier else f"call_{index}",
        type="function",
        function={"name": name, "arguments": arguments},
    )


def _reasoning(message: dict[str, Any]) -> str | None:
    # DeepSeek and older vLLM say `reasoning_content`, newer vLLM and OpenRouter `reasoning`, Mistral a part of the content.
    told = _string(message.get("reasoning_content")) or _string(message.get("reasoning"))
    return told or _string(_joined(message.get("content"), thoughts=True))


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
    texts = [_member(part, "text") or _joined(_member(part, "thinking"), thoughts=False) for part in chosen]
    return "".join(text for text in texts if isinstance(text, str))


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None


def _member(value: object, key: str) -> object:
    return cast("dict[str, object]", value).get(key) if isinstance(value, dict) else None
