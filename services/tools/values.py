"""JSON values: measured without recursion, made hashable, written as canonical text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import orjson

_MAX_INTEGER = 2**64 - 1
_MIN_INTEGER = -(2**63)


def size_problem(value: Any, *, max_depth: int, max_values: int, max_bytes: int) -> str | None:
    """Returns the first bound that a JSON value breaks, or None, in one pass that stops there.

    `max_bytes` bounds about the length of its JSON text; integers must fit in 64 bits.
    """
    pending: list[tuple[Any, int]] = [(value, 1)]
    count = size = 0
    while pending:
        node, depth = pending.pop()
        count += 1
        size += _own_bytes(node)
        if depth > max_depth:
            return f"nested deeper than {max_depth} levels"
        if count > max_values:
            return f"made of more than {max_values} values"
        if size > max_bytes:
            return f"larger than {max_bytes / 1024:g} KiB"
        if isinstance(node, int) and not _MIN_INTEGER <= node <= _MAX_INTEGER:
            return "holding an integer beyond 64 bits"
        pending.extend((child, depth + 1) for child in _children(node))
    return None


def canonical(value: Any) -> bytes:
    """The value's JSON text with sorted keys. Raises TypeError for what JSON cannot hold."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest(*parts: Any) -> bytes:
    """SHA-256 of the canonical text of all parts."""
    return hashlib.sha256(canonical(parts)).digest()


def frozen(value: Any) -> Any:
    """A hashable equal of a JSON value: 1 equals 1.0, true equals neither."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, dict):
        return ("object", frozenset((name, frozen(inner)) for name, inner in value.items()))
    if isinstance(value, list):
        return ("array", tuple(map(frozen, value)))
    return value


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _own_bytes(node: Any) -> int:
    if isinstance(node, str):
        return len(node) + 2
    if isinstance(node, dict):
        return sum(len(key) + 4 for key in node) + 2
    return 2 + len(node) if isinstance(node, list) else 4
