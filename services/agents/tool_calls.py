"""Which tools a model's answer asks for. Pure: it reads the assistant's own text and nothing else.

Three forms, in this order: native `tool_calls`; the whole text as one JSON object (`{"tool": "projects.list", "args": {…}}`,
`{"tool_calls": [{"name", "arguments"}]}` or `{"reply": "…"}`), with or without a code fence around it; lines
`TOOL: projects.list {…}`, at the start of a line and outside code fences, where the JSON object may go on over further lines.
What looks like a call but is none (broken JSON, arguments that are no object) comes back as a call with a `problem`, so that
the model can be told; it is never executed.
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
    """One call that the model asks for. `id` is the model's own; with a `problem` it cannot be executed."""

    tool_id: str
    args: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Reading:
    """What an answer says: the calls it asks for, else the text for people. `was_cut`: it ended before its author did."""

    calls: tuple[WantedCall, ...] = ()
    text: str = ""
    native: bool = False
    was_cut: bool = False


def read_answer(answer: ProxyResponse) -> Reading:
    """Returns what the model wants. A cut-off answer asks for nothing: whether its end was missing cannot be known."""
    was_cut = answer.finish_reason == CUT_OFF
    if answer.tool_calls:
        calls = tuple(_native(call) for call in answer.tool_calls[:MAX_CALLS])
        return Reading(was_cut=True) if was_cut else Reading(calls, answer.content, native=True)
    reading = read_text(answer.content)
    if was_cut:
        return Reading(text="" if reading.calls else reading.text, was_cut=True)
    return reading


def spoken(answer: ProxyResponse) -> str:
    """Returns what an answer says to people, without the calls in it."""
    return read_text(answer.content).text


def read_text(text: str) -> Reading:
    """Returns what a text without native calls says."""
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
    """The text as one JSON object of ours, or None where it is something else."""
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
    if value.get("tool_calls") == []:  # no call and no word: nothing that people should read
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
    """The calls of `TOOL:` lines, and the text without them."""
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
    """One call, and how many lines it takes."""
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
    """A call's arguments, or None; models that have none to give say so in several ways."""
    return {} if text.strip() in {"", "null", '""'} else _object(text)


def _object(text: str) -> dict[str, Any] | None:
    """The one JSON object that `text` is, or None."""
    if len(text) > MAX_ARGUMENT_CHARS:
        return None
    try:
        value = orjson.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
