"""Tool calls as upstreams send them, whole or in fragments, to what the official client reads. Pure.

A call is told by the first fragment with its index, id, type and name; later ones carry the index and a piece of the arguments' text.
Upstreams leave out the index or the id, give every call the index 0 or a new id with each fragment, begin to count at one, repeat the
name, or send arguments as an object.
"""

from __future__ import annotations

import secrets
from typing import Any

from contracts.errors import UpstreamInvalidResponse
from contracts.llm import NO_ARGUMENTS, ToolCall
from providers.upstream_json import decoded, encoded

MAX_TOOL_CALLS = 1_024
_KEPT = "extra_content"
"""Gemini's signature of a thought: it wants it back with the call."""


class _Call:
    """One call while it arrives; `sent_id` is what the upstream called it last."""

    __slots__ = ("id", "index", "name", "pieces", "sent_id")

    def __init__(self, index: int, identifier: str) -> None:
        self.index = index
        self.id = identifier
        self.sent_id: str | None = None
        self.name = ""
        self.pieces: list[str] = []

    def has_arguments(self) -> bool:
        """Whether any text of the arguments came."""
        return any(piece.strip() for piece in self.pieces)

    def is_whole(self) -> bool:
        """Whether the arguments that came are a JSON text."""
        try:
            decoded("".join(self.pieces).encode())
        except ValueError:
            return False
        return True


class ToolFragments:
    """The tool calls of one stream."""

    def __init__(self) -> None:
        self.unreadable = 0
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def feed(self, value: object) -> list[dict[str, Any]]:
        """Returns the fragments of one delta that tell something new; what is no fragment is counted in `unreadable`.

        Raises:
            UpstreamInvalidResponse: more calls than are borne.
        """
        found: list[dict[str, Any]] = []
        for fragment in value if isinstance(value, list) else [value]:
            if not isinstance(fragment, dict):
                self.unreadable += 1
            elif (told := self._told(fragment)) is not None:
                found.append(told)
        return found

    def without_arguments(self) -> list[dict[str, Any]]:
        """Returns the fragments that complete the calls of a finished stream whose arguments are an empty text."""
        return [{"index": call.index, "function": {"arguments": NO_ARGUMENTS}} for call in self._calls if not call.has_arguments()]

    def _told(self, fragment: dict[str, Any]) -> dict[str, Any] | None:
        index, function = fragment.get("index"), fragment.get("function")
        if type(function) is dict and len(function) == 1 and len(fragment) == 2 and type(index) is int:
            call, text = self._by_index.get(index), function.get("arguments")
            if call is not None and call.index == index and type(text) is str:
                call.pieces.append(text)
                return fragment  # the most frequent form: as it should be
        return self._mended(fragment, function if isinstance(function, dict) else fragment)

    def _mended(self, fragment: dict[str, Any], function: dict[str, Any]) -> dict[str, Any] | None:
        name, text = _string(function.get("name")), arguments_text(function.get("arguments"), empty="")
        index, sent_id = _index(fragment.get("index")), _string(fragment.get("id"))
        call = self._known(index, sent_id, name, text)
        told: dict[str, Any] = {}
        if call is None:
            call = self._new(sent_id)
            told = {"id": call.id, "type": "function"}
            if isinstance(fragment.get(_KEPT), dict):
                told[_KEPT] = fragment[_KEPT]
        if index is not None:
            self._by_index[index] = call
        call.sent_id = sent_id or call.sent_id
        new_name = name if name != call.name else ""
        call.name += new_name
        call.pieces.append(text)
        if not (told or new_name or text):
            return None
        named = {"name": new_name} if new_name else {}
        return {"index": call.index, **told, "function": {**named, "arguments": text}}

    def _known(self, index: int | None, sent_id: str | None, name: str, text: str) -> _Call | None:
        """Returns the call that a fragment goes on with, or None where it begins one."""
        if index is not None:
            call = self._by_index.get(index)
        elif sent_id:
            call = self._by_id.get(sent_id)
        else:
            call = self._calls[-1] if self._calls else None
        if call is None or not name or not call.name:
            return call
        if name != call.name:
            renamed = bool(sent_id and sent_id != call.sent_id) or call.is_whole()
            return None if renamed else call
        if text.strip() and call.is_whole():
            return None
        other = sent_id and call.sent_id and sent_id != call.sent_id
        return None if other and (call.is_whole() or not call.has_arguments()) else call

    def _new(self, sent_id: str | None) -> _Call:
        if len(self._calls) >= MAX_TOOL_CALLS:
            raise UpstreamInvalidResponse(f"the provider's answer holds over {MAX_TOOL_CALLS} tool calls")
        call = _Call(len(self._calls), sent_id if sent_id and sent_id not in self._by_id else new_id())
        self._calls.append(call)
        self._by_id[call.id] = call
        return call


def parse_tool_calls(value: object) -> list[ToolCall] | None:
    """Returns the calls of a whole answer, or None without any. Raises UpstreamInvalidResponse for malformed ones."""
    if not value:
        return None
    calls: list[ToolCall] = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not (name := _string(function.get("name"))):
            raise UpstreamInvalidResponse("the provider's answer holds a malformed tool call")
        sent_id = _string(call.get("id"))
        known = sent_id and sent_id not in {other["id"] for other in calls}
        made: dict[str, Any] = {"id": sent_id if known else new_id(), "type": "function"}
        made["function"] = {"name": name, "arguments": arguments_text(function.get("arguments"))}
        if isinstance(call.get(_KEPT), dict):
            made[_KEPT] = call[_KEPT]
        calls.append(made)  # type: ignore[arg-type]
    return calls


def arguments_text(value: object, *, empty: str = NO_ARGUMENTS) -> str:
    """Returns a call's arguments as the JSON text that they should be; `empty` where there are none."""
    if isinstance(value, str):
        return value if value.strip() or not empty else empty
    return encoded(value) if value else empty


def new_id() -> str:
    """Returns an id for a call that came without one; later turns of the conversation must not meet it again."""
    return f"call_{secrets.token_hex(12)}"


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _index(value: object) -> int | None:
    if isinstance(value, (str, float)):
        digits = str(value).removesuffix(".0")
        return int(digits) if digits.isdecimal() and len(digits) < 6 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
