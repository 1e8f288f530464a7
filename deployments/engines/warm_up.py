"""What an engine generates before it counts as ready: each way of asking, and each size of a batch, once. Pure.

The first step of a shape (so many sequences, so long a prompt) and the first use of a sampler, a grammar or a parser of tool calls
cost many times a later one: kernels are chosen, weights and tables come into the caches, modules are loaded. An answer of some
length for one caller alone stands at the end, because that is what the first caller asks for.
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
    """Returns the rounds, one after the other; the requests of a round are made at the same time.

    Requests are bodies of chat completions; `ignore_eos` is for the engine alone and no caller's to ask for.
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
    # Each ends one token after the other: the batch passes through every size.
    crowd = [_asked("Hi", count + 1, **_UNENDING) for count in range(min(max_num_seqs, MAX_CROWD))]
    alone = _asked("Tell me of the sea.", 16, **_UNENDING)
    return [*([way] for way in ways), crowd, [_asked(_LONG, 2)], [alone]]


def _asked(text: str, max_tokens: int, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, **options}
