"""Regular answers of a provider: completions, their stream frames, usage, embeddings."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

UKRAINIAN = "Привіт, світе! Їжак ґречно з’їв п’ять яблук — 🍎."


@dataclass
class Answer:
    """One answer before it is cut into frames of `letters` each, or (0) of a word each.

    `parts` replace its text. `usage_place`: auto, final, last_choice, every_chunk or missing.
    """

    model: str
    text: str
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = "stop"
    usage: dict[str, Any] = field(default_factory=dict)
    usage_place: str = "auto"
    whole_calls: bool = False
    call_index: bool = True
    reasoning_field: str = "reasoning_content"
    refusal: str | None = None
    letters: int = 0
    parts: list[dict[str, Any]] = field(default_factory=list)


def answer_for(body: Mapping[str, Any], options: Mapping[str, Any]) -> Answer:
    """Builds the answer to `body`: the echo of its last user message, or as `options` say."""
    calls = _tool_calls(body, options) if options.get("calls") else []
    text = (
        ""
        if calls and "text" not in options
        else str(options.get("text", f"Echo: {last_user_text(body)}"))
    )
    reasoning = options.get("reasoning")
    return Answer(
        model=str(options.get("model", body.get("model", ""))),
        text=text,
        reasoning=reasoning,
        tool_calls=calls,
        finish_reason=options.get("finish_reason", "tool_calls" if calls else "stop"),
        usage=_usage(body, text, reasoning, options),
        usage_place=options.get("usage", "auto"),
        whole_calls=bool(options.get("whole")),
        call_index=not options.get("no_index"),
        reasoning_field=options.get("reasoning_field", "reasoning_content"),
        refusal=options.get("refusal"),
        letters=int(options.get("letters", 0)),
        parts=options.get("parts", []),
    )


def last_user_text(body: Mapping[str, Any]) -> str:
    """The text of the last user message; parts are joined."""
    for message in reversed(body.get("messages") or []):
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return "".join(
                    str(part.get("text", "")) for part in content if isinstance(part, Mapping)
                )
            return str(content)
    return ""


def tokens_of(text: str) -> list[str]:
    """Cuts a text into words with their leading white space; joined again they are the text."""
    return re.findall(r"\s*\S+|\s+$", text)


def completion(answer: Answer) -> dict[str, Any]:
    """The body of a whole answer."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.parts or (answer.text if answer.text or not answer.tool_calls else None),
    }
    if answer.reasoning is not None:
        message[answer.reasoning_field] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    if answer.refusal is not None:
        message |= {"content": None, "refusal": answer.refusal}
    body = _head(answer, "chat.completion")
    body["choices"] = [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    ]
    if answer.usage_place != "missing":
        body["usage"] = answer.usage
    return body


def frames(answer: Answer, *, include_usage: bool) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, in order, without `[DONE]`."""
    found = [_chunk(answer, {"role": "assistant", "content": ""})]
    found += [
        _chunk(answer, {answer.reasoning_field: token, "content": None})
        for token in tokens_of(answer.reasoning or "")
    ]
    found += [_chunk(answer, {"content": piece}) for piece in _pieces(answer)]
    found += [_chunk(answer, {"tool_calls": [fragment]}) for fragment in _call_fragments(answer)]
    last = _chunk(answer, {}, answer.finish_reason)
    found.append(last)
    place = answer.usage_place
    if place == "last_choice":
        last["usage"] = answer.usage
    elif place == "every_chunk":
        for frame in found:
            frame["usage"] = answer.usage
    elif place == "final" or (place == "auto" and include_usage):
        for frame in found:
            frame["usage"] = None
        found.append(
            {**_head(answer, "chat.completion.chunk"), "choices": [], "usage": answer.usage}
        )
    return found


def is_token(frame: Mapping[str, Any]) -> bool:
    """Whether a frame carries text, reasoning or a tool call."""
    choices = frame.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return any(
        delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls")
    )


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector that depends on the text alone."""
    raw = b"".join(
        hashlib.sha256(f"{index}:{text}".encode()).digest() for index in range(dimensions // 32 + 1)
    )
    values = [byte / 127.5 - 1.0 for byte in raw[:dimensions]]
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    return [value / norm for value in values]


def _pieces(answer: Answer) -> list[Any]:
    size, text = answer.letters, answer.text
    if answer.parts:
        return [[part] for part in answer.parts]
    return (
        [text[start : start + size] for start in range(0, len(text), size)]
        if size
        else tokens_of(text)
    )


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-local",
        "object": kind,
        "created": int(time.time()),
        "model": answer.model,
        "system_fingerprint": "fp_local",
    }


def _chunk(
    answer: Answer, delta: dict[str, Any], finish_reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**_head(answer, "chat.completion.chunk"), "choices": [choice]}


def _tool_calls(body: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [tool["function"]["name"] for tool in body.get("tools") or []] or ["get_weather"]
    arguments = options.get("arguments", '{"city": "Київ", "days": 3}')
    return [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": names[index % len(names)], "arguments": arguments},
        }
        for index in range(int(options["calls"]))
    ]


def _call_fragments(answer: Answer) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(answer.tool_calls):
        place = {"index": index} if answer.call_index else {}
        function = call["function"]
        if answer.whole_calls:
            yield {**place, **call}
            continue
        yield {
            **place,
            "id": call["id"],
            "type": "function",
            "function": {"name": function["name"], "arguments": ""},
        }
        text = str(function["arguments"])
        yield from (
            {**place, "function": {"arguments": text[start : start + 4]}}
            for start in range(0, len(text), 4)
        )


def _usage(
    body: Mapping[str, Any], text: str, reasoning: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    prompt = sum(len(str(message).split()) for message in body.get("messages") or [])
    thought = len(tokens_of(reasoning or ""))
    written = len(tokens_of(text)) + thought
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
    usage["prompt_tokens_details"] = {
        "cached_tokens": int(options.get("cached_tokens", 0)),
        "audio_tokens": 0,
    }
    usage["completion_tokens_details"] = {
        "reasoning_tokens": int(options.get("reasoning_tokens", thought)),
        "audio_tokens": 0,
    }
    usage.update(options.get("usage_fields") or {})
    return usage
