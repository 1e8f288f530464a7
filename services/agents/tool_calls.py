"""Reads tool calls from a model's answer. Pure: only the assistant's own text is read.

Three forms, in this order:

1. native `tool_calls`;
2. the whole text as one JSON object, also in a code fence:
   `{"tool": "projects.list", "args": {…}}`,
   `{"tool_calls": [{"name", "arguments"}]}` or `{"reply": "…"}`;
3. lines `TOOL: projects.list {…}` that begin a line outside code fences; the JSON object may
   continue on further lines.

A malformed call (broken JSON, arguments that are not an object) becomes a call with a `problem`,
which is reported to the model and never executed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from contracts.llm.answers import ProxyResponse
from contracts.llm.messages import ToolCall
from contracts.tools.api import tool_id_of

MAX_CALLS = 128
MAX_ARGUMENT_CHARS = 100_000
MAX_ARGUMENT_LINES = 200
CUT_OFF = "length"

_LINE = re.compile(r"TOOL:[ \t]*(?P<name>[A-Za-z0-9_.-]{1,128})[ \t]*(?P<rest>.*)", re.DOTALL)
_MARK = re.compile(r"TOOL:")
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})")
_FENCED = re.compile(r"\A```[A-Za-z]*[ \t]*\n(?P<inside>.*)\n```[ \t]*\Z", re.DOTALL)
_NOT_AN_OBJECT = "the arguments must be one JSON object"


@dataclass(frozen=True)
class WantedCall:
    """One call that the model asks for, with the model's own `id`. A call with a `problem` cannot
    be executed.
    """

    tool_id: str
    args: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Reading:
    """An answer as it was read: calls, else a text for people. `was_cut`: by the length limit."""

    calls: tuple[WantedCall, ...] = ()
    text: str = ""
    native: bool = False
    was_cut: bool = False


def read_answer(answer: ProxyResponse) -> Reading:
    """Returns the calls or the text of an answer. Calls in a cut-off answer are ignored, because
    they may be incomplete.
    """
    was_cut = answer.finish_reason == CUT_OFF
    if answer.tool_calls:
        calls = tuple(_native(call) for call in answer.tool_calls[:MAX_CALLS])
        return Reading(was_cut=True) if was_cut else Reading(calls, answer.content, native=True)
    reading = read_text(answer.content)
    if was_cut:
        return Reading(text="" if reading.calls else reading.text, was_cut=True)
    return reading


def spoken(answer: ProxyResponse) -> str:
    """Returns the text of an answer without the calls in it."""
    return read_text(answer.content).text


def read_text(text: str) -> Reading:
    """Returns the calls or the text of an answer without native calls."""
    found = _from_object(text)
    if found is not None:
        return found
    calls, rest = _from_lines(text)
    return Reading(tuple(calls[:MAX_CALLS]), rest.strip())


def _native(call: ToolCall) -> WantedCall:
    tool_id, call_id = tool_id_of(call["function"]["name"]), call["id"]
    value = _arguments(call["function"]["arguments"])
    return (
        WantedCall(tool_id, id=call_id, problem=_NOT_AN_OBJECT)
        if value is None
        else WantedCall(tool_id, value, call_id)
    )


def _from_object(text: str) -> Reading | None:
    """Form 2: the text as one JSON object; None when it is something else."""
    stripped = text.strip()
    if fenced := _FENCED.match(stripped):
        stripped = fenced["inside"].strip()
    if not stripped.startswith("{"):
        return None
    value = _object(stripped)
    if value is None:
        broken = re.match(r'\{\s*"(tool|tool_calls)"', stripped) is not None
        return (
            Reading((WantedCall("", problem="the answer is no valid JSON object"),))
            if broken
            else None
        )
    if isinstance(value.get("tool_calls"), list) and value["tool_calls"]:
        return Reading(tuple(_listed(entry) for entry in value["tool_calls"][:MAX_CALLS]))
    if isinstance(value.get("tool"), str):
        return Reading((_named(value["tool"], value.get("args", value.get("arguments", {}))),))
    if isinstance(value.get("reply"), str):
        return Reading(text=value["reply"].strip())
    if value.get("tool_calls") == []:  # neither a call nor a text for people
        return Reading()
    return None


def _listed(entry: Any) -> WantedCall:
    if not isinstance(entry, dict):
        return WantedCall(
            "", problem="each entry of tool_calls must be an object with `name` and `arguments`"
        )
    function = entry.get("function")
    inner = function if isinstance(function, dict) else entry
    name = inner.get("name", inner.get("tool"))
    return _named(
        name if isinstance(name, str) else "", inner.get("arguments", inner.get("args", {}))
    )


def _named(name: str, args: Any) -> WantedCall:
    tool_id = tool_id_of(name)
    if args is None:
        args = {}
    elif isinstance(args, str):
        args = _arguments(args)
    return (
        WantedCall(tool_id, args)
        if isinstance(args, dict)
        else WantedCall(tool_id, problem=_NOT_AN_OBJECT)
    )


def _from_lines(text: str) -> tuple[list[WantedCall], str]:
    """Form 3: the calls of `TOOL:` lines, and the text without them."""
    calls: list[WantedCall] = []
    kept: list[str] = []
    fence: str | None = None
    lines = text.replace("\r\n", "\n").split("\n")
    number = 0
    while number < len(lines):
        line = lines[number]
        mark = _FENCE.match(line)
        if mark and (
            fence is None or (line.strip().startswith(fence) and not line.strip().strip(fence[0]))
        ):
            fence = mark["fence"] if fence is None else None
        elif fence is None and _MARK.match(line):
            call, used = _from_line(lines, number)
            calls.append(call)
            number += used
            continue
        kept.append(line)
        number += 1
    return calls, "\n".join(kept)


def _from_line(lines: Sequence[str], number: int) -> tuple[WantedCall, int]:
    """One call, and the number of lines that it takes."""
    match = _LINE.fullmatch(lines[number])
    if match is None:
        return WantedCall("", problem="a TOOL: line needs the tool's name and one JSON object"), 1
    tool_id, rest = tool_id_of(match["name"]), match["rest"].strip()
    used = 1
    while (
        (value := _arguments(rest)) is None and rest.startswith("{") and used < MAX_ARGUMENT_LINES
    ):
        following = number + used
        if (
            following >= len(lines)
            or _MARK.match(lines[following])
            or _FENCE.match(lines[following])
        ):
            break
        rest += "\n" + lines[following]
        used += 1
    if value is None:
        return WantedCall(tool_id, problem=_NOT_AN_OBJECT), 1
    return WantedCall(tool_id, value), used


def _arguments(text: str) -> dict[str, Any] | None:
    """A call's arguments, None when unreadable. Models write "no arguments" in several ways."""
    return {} if text.strip() in {"", "null", '""'} else _object(text)


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` holds, None when it holds something else."""
    if len(text) > MAX_ARGUMENT_CHARS:
        return None
    try:
        value = orjson.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
