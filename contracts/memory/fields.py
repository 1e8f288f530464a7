"""Values that several wire shapes of the memory share: kinds, bounds, checked JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from contracts.identity import Tenant
from contracts.shapes import Strict
from contracts.values import storable

Kind = Literal["conversation", "kb", "task", "dao-event"]
Tier = Literal["short-term", "mid-term", "long-term"]

MAX_CONTENT_CHARS = 400_000
MAX_META_CHARS = 32_000
MAX_DEPTH = 32
MAX_LIMIT = 100
MAX_WAIT_S = 60.0


def _small_meta(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    _check_json(value, MAX_META_CHARS)
    return value


def _full_content(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    _check_json(value, MAX_CONTENT_CHARS)
    if not any(text.strip() for text in texts_of(value)):
        raise ValueError(
            "holds no text: give {user_message, agent_reply}, {text} or an object with text in it"
        )
    return value


def texts_of(value: JsonValue) -> list[str]:
    """Returns every text among the values of a JSON value, in document order."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts_of(item)]
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item)]
    return []


def _check_json(value: JsonValue, max_chars: int) -> None:
    """Raises ValueError when the value cannot be stored and returned unchanged.

    Walks without recursion, so a deep value cannot exhaust the stack.
    """
    remaining = max_chars
    pending: list[tuple[JsonValue, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        remaining -= _cost(item)
        if remaining < 0:
            raise ValueError(f"is over {max_chars} characters")
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(item, dict):
            pending.extend((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            pending.extend((part, depth + 1) for part in item)


def _cost(item: JsonValue) -> int:
    if isinstance(item, str):
        return len(storable(item)) + 2
    if isinstance(item, int) and not isinstance(item, bool) and not -(2**63) <= item < 2**64:
        raise ValueError("holds an integer of more than 64 bits: send it as a text")
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError("holds a number that is not finite")
    return 4


Meta = Annotated[
    dict[str, JsonValue],
    BeforeValidator(lambda given: {} if given is None else given),
    AfterValidator(_small_meta),
]
"""The caller's own keys; null is the same as no keys."""
Content = Annotated[dict[str, JsonValue], AfterValidator(_full_content)]
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(storable)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
Seconds = Annotated[float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)]


class TenantWithAliases(Tenant, Strict):
    """Accepts some fields under a second name as well, which neighbouring services use."""

    aliases: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _resolve_aliases(cls, given: Any) -> Any:
        """Moves each alias to its field; null counts as absent.

        Raises:
            ValueError: alias and field are both given and differ.
        """
        if not isinstance(given, dict):
            return given
        fields = dict(given)
        for alias, name in cls.aliases.items():
            value = fields.pop(alias, None)
            if value is None:
                continue
            # repr, because 1 == True in Python, but not in JSON.
            if fields.get(name) is not None and repr(fields[name]) != repr(value):
                raise ValueError(
                    f"{alias}: another name of `{name}`, and the values differ: send one of them"
                )
            fields[name] = value
        return fields

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for alias, name in cls.aliases.items():
            properties[alias] = {
                **properties[name],
                "title": alias,
                "description": f"Another name of `{name}`.",
            }
        return schema
