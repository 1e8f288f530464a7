"""Bounds for JSON schemas that have none, so that a small model cannot loop inside one value for ever.

A schema with tighter bounds accepts a subset of what the caller's accepts: what the model writes satisfies both.
"""

from __future__ import annotations

import json
from typing import Any

from configs.engines import StructuredSettings
from contracts.errors import InvalidRequest

MAX_DEPTH = 64
MAX_BYTES = 64 << 10

_SUBSCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUBSCHEMA_MAPS = ("properties", "$defs", "definitions")
_SUBSCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else")


def bound_schema(schema: Any, bounds: StructuredSettings) -> Any:
    """Returns a copy of `schema` where unbounded strings and arrays get the bounds.

    Only keywords that hold schemas are followed: a `const` or `enum` that looks like a schema stays as it is.

    Raises:
        InvalidRequest: nested deeper than MAX_DEPTH, or longer than MAX_BYTES (compiling it would hold up everybody else).
    """
    try:
        size = len(json.dumps(schema))
    except RecursionError:
        raise _too_deep() from None
    if size > MAX_BYTES:
        raise InvalidRequest(f"the JSON schema is larger than {MAX_BYTES >> 10} KiB")
    return _bounded(schema, bounds, 0)


def _bounded(schema: Any, bounds: StructuredSettings, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _too_deep()
    if not isinstance(schema, dict):
        return schema
    bounded = dict(schema)
    for key in _SUBSCHEMAS:
        if key in bounded:
            bounded[key] = _bounded(bounded[key], bounds, depth + 1)
    for key in _SUBSCHEMA_LISTS:
        if isinstance(bounded.get(key), list):
            bounded[key] = [_bounded(item, bounds, depth + 1) for item in bounded[key]]
    for key in _SUBSCHEMA_MAPS:
        if isinstance(bounded.get(key), dict):
            bounded[key] = {name: _bounded(item, bounds, depth + 1) for name, item in bounded[key].items()}
    _bound_string(bounded, bounds.max_string_length)
    _bound_array(bounded, bounds.max_items)
    return bounded


def _bound_string(schema: dict[str, Any], limit: int | None) -> None:
    if limit is None or "string" not in _types(schema):
        return
    # A pattern or format beside a length makes the grammar compiler drop the length.
    if schema.keys().isdisjoint({"const", "enum", "pattern", "format", "maxLength"}):
        schema["maxLength"] = max(limit, _count(schema.get("minLength")))


def _bound_array(schema: dict[str, Any], limit: int | None) -> None:
    if limit is None or "array" not in _types(schema):
        return
    if schema.keys().isdisjoint({"const", "enum", "maxItems"}):
        prefix = schema.get("prefixItems")
        fixed = len(prefix) if isinstance(prefix, list) else 0
        schema["maxItems"] = max(limit, _count(schema.get("minItems")), fixed)


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the JSON schema is nested deeper than {MAX_DEPTH} levels")


def _types(schema: dict[str, Any]) -> list[Any]:
    wanted = schema.get("type")
    return wanted if isinstance(wanted, list) else [wanted]


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
