"""Bounds JSON schemas, so that a small model cannot loop inside one value without end.

A bounded schema accepts a subset of the caller's, so an answer satisfies both. Keywords that the
grammar compiler (xgrammar) silently ignores are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from configs.engines.config import StructuredSettings
from contracts.errors import InvalidRequest

MAX_DEPTH = 64
MAX_BYTES = 64 << 10

_SUBSCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUBSCHEMA_MAPS = ("properties", "$defs", "definitions")
_SUBSCHEMAS = ("items", "additionalProperties", "unevaluatedItems", "unevaluatedProperties")
"""`not` and `if` are missing: a bound inside a negation would widen the whole schema."""

_ANY = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_KINDS = {type(None): "null", bool: "boolean", int: "integer", str: "string", list: "array"}
_IGNORED = (
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "contains", "minContains", "maxContains", "uniqueItems", "additionalItems",
    "$dynamicRef", "$recursiveRef",
)  # fmt: skip
# The compiler reads the first of these that is present, and no assertion beside it.
_ALONE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
_OF_OBJECTS = ("required", "minProperties", "maxProperties", "patternProperties", "propertyNames")
_OF_ARRAYS = ("minItems", "maxItems")
_OF_SCALARS = (
    "minLength", "maxLength", "pattern", "format",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
)  # fmt: skip
_READ_ONLY_BESIDE = {
    _OF_OBJECTS: {"type", "properties", "additionalProperties", "unevaluatedProperties"},
    _OF_ARRAYS: {"type", "items", "prefixItems", "unevaluatedItems"},
    _OF_SCALARS: {"type"},
}
"""By keywords: those that tell the compiler the type; without one of them it ignores the former."""
_IGNORED_BESIDE = {
    (
        *_ALONE,
        "properties",
        "prefixItems",
        *_SUBSCHEMAS,
        *_OF_OBJECTS,
        *_OF_ARRAYS,
        *_OF_SCALARS,
    ): _ALONE,
    ("minLength", "maxLength"): ("pattern", "format"),
}
"""By keywords: those beside which the compiler ignores the former."""
_MAX_PATH = 200
_MAX_VARIANTS = 32
"""Branches of a `oneOf`; every pair of them is compared."""


def bound_schema(schema: Any, bounds: StructuredSettings) -> Any:
    """Returns a copy of `schema` where unbounded strings and arrays have bounds.

    A `const` or `enum` that looks like a schema stays unchanged.

    Raises:
        InvalidRequest: nested deeper than MAX_DEPTH, or longer than MAX_BYTES, because compiling it
            would hold up all other requests.
    """
    try:
        text = json.dumps(schema)
        if len(text) > MAX_BYTES:
            raise InvalidRequest(f"the JSON schema is larger than {MAX_BYTES >> 10} KiB")
        bounded = json.loads(text)
        for _, part in _parts(bounded, "$"):
            # The grammar compiler drops a length beside a pattern or format.
            if part.keys().isdisjoint({"pattern", "format"}):
                _bound(part, "string", "Length", bounds.max_string_length)
            fixed = len(_list(part.get("prefixItems")))
            _bound(part, "array", "Items", bounds.max_items, fixed)
    except RecursionError:
        raise InvalidRequest(f"the JSON schema is nested deeper than {MAX_DEPTH} levels") from None
    return bounded


def refuse_widened(schema: dict[str, Any]) -> None:
    """Refuses keywords that the grammar would ignore: answers could break the caller's schema.

    `bound_schema`, which bounds the depth, must come first.

    Raises:
        InvalidRequest: names the keyword and its JSON path.
    """
    for path, part in _parts(schema, "$"):
        for keyword, why in _widened(part, schema):
            shown = path if len(path) <= _MAX_PATH else f"{path[:_MAX_PATH]}…"
            raise InvalidRequest(
                f"the engine does not support this JSON schema: `{keyword}` at {shown} {why}"
            )


def _parts(schema: Any, path: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields `schema` and every schema inside it, with their paths. Raises RecursionError."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if not isinstance(schema, dict):
        return
    yield path, schema
    inner = [(f"{path}.{key}", schema.get(key)) for key in _SUBSCHEMAS]
    for key in _SUBSCHEMA_LISTS:
        inner += [
            (f"{path}.{key}[{index}]", item) for index, item in enumerate(_list(schema.get(key)))
        ]
    for key in _SUBSCHEMA_MAPS:
        for name, item in _dict(schema.get(key)).items():
            step = f".{name}" if name.isidentifier() else f"[{json.dumps(name)}]"
            inner.append((f"{path}.{key}{step}", item))
    for place, item in inner:
        yield from _parts(item, place, depth + 1)


def _widened(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the keywords of one schema that the grammar would ignore, each with the reason."""
    yield from ((key, "is not supported") for key in _IGNORED if key in schema)
    if len(_list(schema.get("allOf"))) > 1:
        yield "allOf", "has more than one branch: merge them"
    variants = [_resolved(branch, root) for branch in _list(schema.get("oneOf"))]
    if len(variants) > _MAX_VARIANTS:
        yield "oneOf", f"has more than {_MAX_VARIANTS} branches"
    if not all(_disjoint(one, other, root) for one, other in combinations(variants, 2)):
        yield (
            "oneOf",
            "has branches that `const`, `enum` or `type` do not plainly separate: use `anyOf`",
        )
    for keywords, others in _IGNORED_BESIDE.items():
        yield from (
            (keyword, f"is not supported beside `{other}`")
            for keyword in keywords
            for other in others
            if keyword in schema and other in schema and keyword != other
        )
    if "type" in schema and not schema.keys().isdisjoint(_ALONE):
        typeless = {key: value for key, value in schema.items() if key != "type"}
        if not _kinds(typeless, root) <= _kinds({"type": schema["type"]}, root):
            yield "type", "does not plainly agree with the keyword beside it"
    for keywords, tellers in _READ_ONLY_BESIDE.items():
        if schema.keys().isdisjoint(tellers):
            yield from ((key, "needs a `type` beside it") for key in keywords if key in schema)
    if not _required(schema) <= _dict(schema.get("properties")).keys():
        yield "required", "names what is not in `properties`"


def _disjoint(one: Any, other: Any, root: dict[str, Any]) -> bool:
    """Whether no value can satisfy both, by types, values, or values of a property both require."""
    kinds = _kinds(one, root) & _kinds(other, root)
    pairs = [(one, other)]
    if kinds == {"object"}:
        ones, others = (_dict(_dict(each).get("properties")) for each in (one, other))
        pairs = [
            (_resolved(ones.get(name), root), _resolved(others.get(name), root))
            for name in _required(one) & _required(other)
        ]
    return not kinds or any(_apart(_values(part), _values(twin)) for part, twin in pairs)


def _apart(values: frozenset[Any] | None, others: frozenset[Any] | None) -> bool:
    return values is not None and others is not None and values.isdisjoint(others)


def _kinds(schema: Any, root: dict[str, Any], *, branching: bool = True) -> frozenset[str]:
    """Returns the types that a value of `schema` can have; all types where that is unclear."""
    schema = _dict(_resolved(schema, root))
    if "const" in schema or isinstance(schema.get("enum"), list):
        return frozenset(map(_kind, [schema["const"]] if "const" in schema else schema["enum"]))
    if "type" in schema:
        named = {kind for kind in _types(schema) if isinstance(kind, str)}
        return frozenset(named | {"integer"} if "number" in named else named)
    for key in ("anyOf", "oneOf", "allOf"):
        if branching and (branches := _list(schema.get(key))):
            return frozenset().union(
                *(_kinds(branch, root, branching=False) for branch in branches)
            )
    return _ANY


def _kind(value: object) -> str:
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return _KINDS.get(type(value), "object")


def _values(schema: Any) -> frozenset[tuple[str, Any]] | None:
    """Returns the values of `const` or `enum`; None without either, or where one is a container."""
    values = [schema["const"]] if "const" in _dict(schema) else _dict(schema).get("enum")
    if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
        return None
    return frozenset((_kind(value), value) for value in values)


def _required(schema: Any) -> set[str]:
    return {name for name in _list(_dict(schema).get("required")) if isinstance(name, str)}


def _resolved(schema: Any, root: dict[str, Any]) -> Any:
    """Follows references into the schema's own definitions; other references stay."""
    for _ in range(MAX_DEPTH):
        reference = _dict(schema).get("$ref")
        if not isinstance(reference, str):
            break
        place, _, name = reference.rpartition("/")
        definitions = _dict(root.get(place.removeprefix("#/")))
        if place not in ("#/$defs", "#/definitions") or name not in definitions:
            break
        schema = definitions[name]
    return schema


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _bound(
    schema: dict[str, Any], kind: str, measure: str, limit: int | None, least: int = 0
) -> None:
    """Sets the `max` of a measure, unless the schema bounds it; never below the caller's `min`."""
    if limit is None or kind not in _types(schema):
        return
    if schema.keys().isdisjoint({"const", "enum", f"max{measure}"}):
        schema[f"max{measure}"] = max(limit, _count(schema.get(f"min{measure}")), least)


def _types(schema: dict[str, Any]) -> list[Any]:
    wanted = schema.get("type")
    return wanted if isinstance(wanted, list) else [wanted]


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
