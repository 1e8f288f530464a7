"""JSON Schemas of tools: checked on registration, compiled once, applied within a budget.

A schema comes from an operator or an outside MCP server, a value from a model: neither may block a
replica. So nothing is fetched (`$ref` stays inside the document), patterns run in linear time, and
every applied keyword costs a step of a bounded budget, however much the schema's references
multiply.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable

from contracts.errors import InvalidRequest
from services.tools.values import frozen, size_problem

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_VALUES = 4_000
MAX_PATTERN_CHARS = 1_000
MAX_ERRORS = 20
DEFAULT_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# The library would validate a part that names its dialect without our bounds.
_OF_THE_ROOT = frozenset({"$id", "$schema"})
_WITHHELD = (
    *_OF_THE_ROOT,
    "$anchor",
    "$dynamicRef",
    "$recursiveRef",
    "$dynamicAnchor",
    "$recursiveAnchor",
    "$vocabulary",
)

_EXPECTED = {
    "minimum": "a number of at least {}",
    "maximum": "a number of at most {}",
    "exclusiveMinimum": "a number above {}",
    "exclusiveMaximum": "a number below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "a text that matches {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "uniqueItems": "items that differ from each other",
    "minProperties": "at least {} properties",
    "maxProperties": "at most {} properties",
    "not": "anything but a match of {}",
}

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class OutOfBudget(Exception):
    """The validation used up its budget."""


@dataclass(slots=True)
class Budget:
    """The work of one validation: keywords applied, and CPU seconds of this thread.

    The CPU time is read only every 64 steps.
    """

    steps: int = 50_000
    cpu_s: float = 0.25
    _until: float | None = None

    def spend(self, steps: int) -> None:
        """Raises OutOfBudget once the budget is used up."""
        self.steps -= steps
        if self._until is None:
            self._until = time.thread_time() + self.cpu_s
        if self.steps < 0 or (self.steps & 63 == 0 and time.thread_time() > self._until):
            raise OutOfBudget


# Of the validation that runs in this context: keywords are the same functions for all schemas.
_budget: ContextVar[Budget] = ContextVar("budget")
_patterns: ContextVar[Mapping[str, SchemaValidator]] = ContextVar("patterns")


@dataclass(frozen=True)
class Violation:
    """Where a value breaks its schema (a JSON path from `$`, the value) and what is expected."""

    path: str
    expected: str

    @property
    def text(self) -> str:
        """One sentence for people and models."""
        return f"{self.path}: expected {self.expected}"


class CompiledSchema:
    """One schema, ready to validate many values."""

    def __init__(self, schema: dict[str, Any], *, subject: str = "schema") -> None:
        """Raises InvalidRequest if the schema is invalid, too large, or not supported."""
        _check_shape(schema, subject)
        dialect = _dialect(schema, subject)
        try:
            dialect.check_schema(schema)
        except SchemaError as error:
            where, text = error.json_path, _short(error.message)
            raise InvalidRequest(
                f"{subject} is not a valid JSON Schema: at {where}: {text}"
            ) from None
        self._patterns = _compile_patterns(schema, subject)
        undeclared = {name: value for name, value in schema.items() if name != "$schema"}
        self._validator = dialect(undeclared, registry=Registry())
        self._try(subject)

    def violation(self, value: Any, budget: Budget | None = None) -> Violation | None:
        """Returns the most telling violation of the schema, or None. May run on any thread.

        A value whose check exceeds the budget is a violation, too.
        """
        try:
            errors = self._errors(value, budget or Budget())
        except (OutOfBudget, RecursionError, Unresolvable):
            return Violation(
                "$",
                "a value that can be checked within bounds: "
                "it is too large or too deep for its schema",
            )
        return _violation(min(errors, key=_telling)) if errors else None

    def _try(self, subject: str) -> None:
        """Finds references that lead only to themselves."""
        probes: tuple[Any, ...] = ({}, [], "", 0, None)
        for probe in probes:
            try:
                self._errors(probe, Budget())
            except (OutOfBudget, RecursionError):
                raise InvalidRequest(f"{subject} refers to itself without end") from None
            except Unresolvable:
                raise InvalidRequest(f"{subject} has a $ref that leads nowhere") from None

    def _errors(self, value: Any, budget: Budget) -> list[ValidationError]:
        _budget.set(budget)
        _patterns.set(self._patterns)
        return list(itertools.islice(self._validator.iter_errors(value), MAX_ERRORS))


def _check_shape(schema: Any, subject: str) -> None:
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{subject} must be a JSON object")
    problem = size_problem(
        schema,
        max_depth=MAX_SCHEMA_DEPTH,
        max_values=MAX_SCHEMA_VALUES,
        max_bytes=MAX_SCHEMA_BYTES,
    )
    if problem:
        raise InvalidRequest(f"{subject} is {problem}")
    for node in _nodes(schema):
        if isinstance(node.get("$ref"), str):
            _check_reference(schema, node["$ref"], subject)
        for key in _WITHHELD:
            if isinstance(node.get(key), str) and not (key in _OF_THE_ROOT and node is schema):
                raise InvalidRequest(f"{subject} uses `{key}`, which is not served here")
    # The library would search these patterns itself, also across subschemas, without our bounds.
    if {"unevaluatedProperties", "patternProperties"} <= set[str]().union(*_nodes(schema)):
        raise InvalidRequest(
            f"{subject} combines unevaluatedProperties with patternProperties, "
            "which is not served here"
        )


def _check_reference(schema: dict[str, Any], reference: str, subject: str) -> None:
    if reference != "#" and not reference.startswith("#/"):
        raise InvalidRequest(
            f"{subject} has a $ref to another document: "
            "only references inside it (`#/…`) are followed"
        )
    resolver = Registry[Any]().resolver()
    try:
        node = Resource.opaque(schema).pointer(reference[1:], resolver).contents
    except (Unresolvable, ValueError, TypeError):
        raise InvalidRequest(f"{subject} has a $ref that leads nowhere") from None
    if not isinstance(node, dict | bool):
        raise InvalidRequest(f"{subject} has a $ref that does not point to a schema")


def _dialect(schema: dict[str, Any], subject: str) -> Any:
    dialect = DIALECTS.get(str(schema.get("$schema", DEFAULT_DIALECT)).rstrip("#"))
    if dialect is None:
        raise InvalidRequest(
            f"{subject} names a `$schema` that is not served here: "
            "use JSON Schema 2020-12 or draft-07"
        )
    return dialect


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every object within. Property names that look like keywords make checks stricter."""
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield node
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _compile_patterns(schema: dict[str, Any], subject: str) -> dict[str, SchemaValidator]:
    wanted: set[str] = set()
    for node in _nodes(schema):
        if isinstance(node.get("pattern"), str):
            wanted.add(node["pattern"])
        if isinstance(node.get("patternProperties"), dict):
            wanted.update(node["patternProperties"])
    compiled = {}
    for pattern in wanted:
        if len(pattern) > MAX_PATTERN_CHARS:
            raise InvalidRequest(f"{subject} has a pattern over {MAX_PATTERN_CHARS} characters")
        try:
            # Rust's regular expressions run in linear time.
            compiled[pattern] = SchemaValidator(core_schema.str_schema(pattern=pattern))
        except PatternError:
            raise InvalidRequest(
                f"{subject} has a pattern that cannot be run in linear time "
                "(look-around or back-references)"
            ) from None
    return compiled


def _paid(keyword: Keyword) -> Keyword:
    def paid(
        validator: Any, value: Any, instance: Any, schema: Any
    ) -> Iterator[ValidationError] | None:
        _budget.get().spend(1 + len(instance) // 16 if isinstance(instance, list | dict) else 1)
        return keyword(validator, value, instance, schema)

    return paid


def _is_found(pattern: str, text: str) -> bool:
    return _patterns.get()[pattern].isinstance_python(text)


def _pattern(validator: Any, wanted: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _is_found(wanted, instance):
        yield ValidationError("does not match the pattern")


def _pattern_properties(
    validator: Any, wanted: dict[str, Any], instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in wanted.items():
        for name, value in instance.items():
            if _is_found(pattern, name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, wanted: Any, instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extra = [
        name
        for name in instance
        if name not in named and not any(_is_found(pattern, name) for pattern in patterns)
    ]
    if isinstance(wanted, dict):
        for name in extra:
            yield from validator.descend(instance[name], wanted, path=name)
    elif not wanted and extra:
        yield ValidationError(f"unknown properties: {', '.join(map(_short, sorted(extra)[:5]))}")


def _unique_items(
    validator: Any, wanted: Any, instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    if wanted and validator.is_type(instance, "array"):
        seen = set(map(frozen, instance))
        if len(seen) != len(instance):
            yield ValidationError("items are not unique")


def _guarded(dialect: Any) -> Any:
    """Returns the dialect with a cost per keyword, and linear-time versions of some."""
    keywords = {
        **dialect.VALIDATORS,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    return extend(dialect, {name: _paid(keyword) for name, keyword in keywords.items()})


DIALECTS = {
    DEFAULT_DIALECT: _guarded(Draft202012Validator),
    "http://json-schema.org/draft-07/schema": _guarded(Draft7Validator),
}


def _telling(error: ValidationError) -> tuple[int, int]:
    """Sorts shallow errors first, then wrong types; branches of a union come last."""
    return (
        len(error.absolute_path),
        {"type": 0, "required": 1, "anyOf": 3, "oneOf": 3}.get(str(error.validator), 2),
    )


def _violation(error: ValidationError) -> Violation:
    return Violation(_short(error.json_path, 200), _expected(error))


def _expected(error: ValidationError) -> str:
    keyword, wanted = str(error.validator), error.validator_value
    if keyword == "type":
        return " or ".join(wanted) if isinstance(wanted, list) else str(wanted)
    if keyword == "required":
        missing = [
            name
            for name in wanted
            if isinstance(error.instance, dict) and name not in error.instance
        ]
        names = ", ".join(f"`{_short(name)}`" for name in missing[:5])
        return f"the required {'property' if len(missing) == 1 else 'properties'} {names}"
    if keyword == "additionalProperties":
        return f"no properties beside the declared ones ({error.message})"
    if keyword in {"enum", "const"}:
        return _short(f"{'one of' if keyword == 'enum' else 'exactly'} {wanted!r}", 300)
    if keyword in {"anyOf", "oneOf"}:
        branches = [_violation(inner).text for inner in itertools.islice(error.context or (), 3)]
        number = "any" if keyword == "anyOf" else "exactly one"
        text = f"a match of {number} of {len(wanted)} schemas ({'; '.join(branches)})"
        return _short(text, 400)
    return _short(_EXPECTED.get(keyword, f"{keyword} {{}}").format(wanted), 200)


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
