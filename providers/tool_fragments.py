"""Converts tool calls, whole or in fragments, into the form that the official client reads. Pure.

The first fragment of a call holds its index, id, type and name; later ones the index and a piece of
the arguments' text. Upstreams omit the index or the id, give every call the index 0 or a new id
with each fragment, count from one, repeat the name or the whole call, or send arguments as an
object.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from contracts.errors import UpstreamInvalidResponse
from contracts.llm.messages import NO_ARGUMENTS, ToolCall
from providers.upstream_json import encoded

MAX_TOOL_CALLS = 1_024
MAX_NAME_CHARS = 256
"""The bound of a ToolCall's name: joining one from many pieces costs the square of its length."""
_KEPT = "extra_content"
"""Gemini's signature of a thought, which must be sent back with the call."""
_MARKS = re.compile(r'\\.?|["{}\[\]]', re.DOTALL)


class _Arguments:
    """The text of a call's arguments. `is_whole` scans every character once, however often it is
    called.
    """

    __slots__ = (
        "_depth",
        "_escape",
        "_in_string",
        "_pieces",
        "_scanned",
        "_size",
        "_started",
        "is_blank",
    )

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = self._scanned = self._depth = 0
        self._in_string = self._started = False
        self._escape = ""
        self.is_blank = True

    def add(self, piece: str) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self.is_blank:
            self.is_blank = not piece.strip()

    def is_whole(self) -> bool:
        """Whether an object, array or string has ended, by brackets and quotes alone."""
        while self._scanned < len(self._pieces):
            self._scan(self._pieces[self._scanned])
            self._scanned += 1
        return self._started and self._depth <= 0 and not self._in_string

    def equals(self, text: str) -> bool:
        return len(text) == self._size and "".join(self._pieces) == text

    def _scan(self, piece: str) -> None:
        text, self._escape = self._escape + piece, ""
        for mark in _MARKS.findall(text):
            if mark == "\\":
                self._escape = mark  # the escaped character is in the next piece
            elif mark == '"':
                self._in_string, self._started = not self._in_string, True
            elif mark[0] != "\\" and not self._in_string:
                self._depth, self._started = self._depth + (1 if mark in "{[" else -1), True


class _Call:
    """One call while it arrives; `sent_id` is the latest id that the upstream sent for it."""

    __slots__ = ("arguments", "id", "index", "name", "sent_id")

    def __init__(self, index: int, identifier: str) -> None:
        self.index = index
        self.id = identifier
        self.sent_id: str | None = None
        self.name = ""
        self.arguments = _Arguments()

    def is_repeated_by(self, sent_id: str, name: str, text: str) -> bool:
        """Whether the upstream repeats the whole call. Equal calls without an id may be two."""
        same = bool(sent_id) and sent_id == self.sent_id and name in {"", self.name}
        return same and self.arguments.equals(text) and self.arguments.is_whole()

    def is_followed_by_another(self, sent_id: str, name: str, text: str) -> bool:
        """Whether a fragment at this call's index starts a new call; it needs a name."""
        if not name or not self.name:
            return False
        if name != self.name:
            return bool(sent_id and sent_id != self.sent_id) or self.arguments.is_whole()
        has_other_id = bool(sent_id and self.sent_id and sent_id != self.sent_id)
        if text.strip() and self.arguments.is_whole():
            return True
        return has_other_id and (self.arguments.is_blank or self.arguments.is_whole())


class ToolFragments:
    """The tool calls of one stream."""

    def __init__(self) -> None:
        self.unreadable = 0
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def feed(self, value: object) -> list[dict[str, Any]]:
        """Returns the fragments of one delta that add something; others are counted in
        `unreadable`.

        Raises:
            UpstreamInvalidResponse: too many calls, or a name that is too long.
        """
        found: list[dict[str, Any]] = []
        for sent in value if isinstance(value, list) else [value]:
            if not isinstance(sent, dict):
                self.unreadable += 1
            elif (fragment := self._fragment(sent)) is not None:
                found.append(fragment)
        return found

    def without_arguments(self) -> list[dict[str, Any]]:
        """Returns fragments with empty arguments for finished calls that have none."""
        return [
            {"index": call.index, "function": {"arguments": NO_ARGUMENTS}}
            for call in self._calls
            if call.arguments.is_blank
        ]

    def _fragment(self, sent: dict[str, Any]) -> dict[str, Any] | None:
        index, function = sent.get("index"), sent.get("function")
        if type(function) is dict and len(function) == 1 and len(sent) == 2 and type(index) is int:
            call, text = self._by_index.get(index), function.get("arguments")
            if call is not None and call.index == index and type(text) is str:
                call.arguments.add(text)
                return sent  # the most frequent form needs no change
        return self._normalised(sent, function if isinstance(function, dict) else sent)

    def _normalised(self, sent: dict[str, Any], function: dict[str, Any]) -> dict[str, Any] | None:
        name, text = (
            _string(function.get("name")),
            arguments_text(function.get("arguments"), empty=""),
        )
        index, sent_id = _index(sent.get("index")), _string(sent.get("id"))
        call = self._addressed(index, sent_id)
        if call is not None and call.is_repeated_by(sent_id, name, text):
            return None
        begun: dict[str, Any] = {}
        if call is None or call.is_followed_by_another(sent_id, name, text):
            call = self._new(sent_id)
            begun = {"id": call.id, "type": "function"}
            if isinstance(sent.get(_KEPT), dict):
                begun[_KEPT] = sent[_KEPT]
        if index is not None:
            self._by_index[index] = call
        call.sent_id = sent_id or call.sent_id
        new_name = name if name != call.name else ""
        if len(call.name) + len(new_name) > MAX_NAME_CHARS:
            raise UpstreamInvalidResponse(
                f"the provider's answer names a tool with over {MAX_NAME_CHARS} characters"
            )
        call.name += new_name
        call.arguments.add(text)
        if not (begun or new_name or text):
            return None
        named = {"name": new_name} if new_name else {}
        return {"index": call.index, **begun, "function": {**named, "arguments": text}}

    def _addressed(self, index: int | None, sent_id: str) -> _Call | None:
        """Returns the call that a fragment names by index or id; without either, the last one, if
        any.
        """
        if index is not None:
            return self._by_index.get(index)
        if sent_id:
            return self._by_id.get(sent_id)
        return self._calls[-1] if self._calls else None

    def _new(self, sent_id: str) -> _Call:
        if len(self._calls) >= MAX_TOOL_CALLS:
            raise UpstreamInvalidResponse(
                f"the provider's answer holds over {MAX_TOOL_CALLS} tool calls"
            )
        call = _Call(
            len(self._calls), sent_id if sent_id and sent_id not in self._by_id else new_id()
        )
        self._calls.append(call)
        self._by_id[call.id] = call
        return call


def parse_tool_calls(value: object) -> list[ToolCall] | None:
    """Returns the calls of a whole answer, or None. Raises UpstreamInvalidResponse for malformed
    ones.
    """
    if not value:
        return None
    calls: list[ToolCall] = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if (
            not isinstance(call, dict)
            or not isinstance(function, dict)
            or not (name := _string(function.get("name")))
        ):
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
    """Returns a call's arguments as JSON text; `empty` if there are none."""
    if isinstance(value, str):
        return value if value.strip() or not empty else empty
    return encoded(value) if value else empty


def new_id() -> str:
    """Returns an id for a call without one; unique, because it stays in the conversation."""
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
