"""The requests of an engine's warm-up: each kind of request and each size of a batch, once. Pure.

The first step of a shape (sequences, prompt length) and the first use of a sampler, a grammar or a
parser of tool calls take many times as long as later ones: kernels are chosen, caches filled,
modules loaded. The last round is one longer answer, as the first caller will ask for.
"""

from __future__ import annotations

from typing import Any

MAX_CROWD = 32
"""Answers at a time; a GPU's larger batches are captured when the engine starts."""
_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "warm_up", "parameters": _SCHEMA}}
_LONG = "Wood, water, stone and light. " * 32
_UNENDING = {"ignore_eos": True}


def warm_up_rounds(*, max_num_seqs: int, calls_tools: bool) -> list[list[dict[str, Any]]]:
    """Returns the rounds in order; the requests of one round are sent together.

    A request is the body of a chat completion; only the engine accepts its `ignore_eos`.
    """
    schema = {"type": "json_schema", "json_schema": {"name": "warm_up", "schema": _SCHEMA}}
    ways = [
        _asked("Hi", 4),
        _asked("Hi", 8, response_format=schema),
        _asked("Hi", 4, temperature=0.7),
        _asked("Hi", 4, temperature=0.7, top_p=0.9, seed=1),
    ]
    if calls_tools:
        ways.append(_asked("Hi", 12, tools=[_TOOL], tool_choice="required"))
    # Each answer is one token longer than the last, so the batch passes through every size.
    crowd = [_asked("Hi", count + 1, **_UNENDING) for count in range(min(max_num_seqs, MAX_CROWD))]
    alone = _asked("Tell me of the sea.", 16, **_UNENDING)
    return [*([way] for way in ways), crowd, [_asked(_LONG, 2)], [alone]]


def _asked(text: str, max_tokens: int, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, **options}
