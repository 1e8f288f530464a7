"""Results of tools: previews of long ones, and their pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from pydantic import BaseModel, Field

from contracts.errors import InvalidRequest
from contracts.shapes import Strict
from contracts.tools.ledger import StoredResult
from services.tools.schemas import CompiledSchema

MAX_PAGE_BYTES = 256 * 1024
# Items of an array and characters of a text that successive previews keep.
_CUTS = ((100, 2_000), (30, 1_000), (10, 500), (5, 200), (3, 100), (1, 50), (1, 10), (0, 0))


class PageRequest(Strict):
    """Query of `GET /results/{id}`.

    `offset` and `limit` count an array's items, else characters of the JSON text.
    """

    microdao_id: str = Field(min_length=1, max_length=256)
    offset: int = Field(default=0, ge=0, lt=2**53)
    limit: int | None = Field(default=None, ge=1, le=MAX_PAGE_BYTES)


class ResultPage(BaseModel):
    """One page. `unit` is `items` (`result` is an array) or `characters` (`text` is JSON text).

    `total` counts the whole in that unit; `next_offset` is None on the last page.
    """

    id: str
    unit: str
    offset: int
    total: int
    next_offset: int | None = None
    result: list[Any] | None = None
    text: str | None = None


def to_text(result: Any) -> str:
    """Returns the result as JSON text. Raises TypeError for values and texts that JSON forbids."""
    try:
        return orjson.dumps(result).decode()
    except orjson.JSONEncodeError as error:
        raise TypeError(str(error)) from None


def preview(result: Any, schema: CompiledSchema | None, max_bytes: int) -> Any:
    """Returns the result, arrays and texts cut so that it fits and matches its schema, or None.

    Takes the largest of a few cuts that fits. Objects keep all members: a missing one would be
    taken as a statement.
    """
    for items, characters in _CUTS:
        candidate = _cut(result, items, characters)
        if len(orjson.dumps(candidate)) <= max_bytes and (
            schema is None or schema.violation(candidate) is None
        ):
            return candidate
    return None


def _cut(value: Any, items: int, characters: int) -> Any:
    if isinstance(value, str):
        return value[:characters]
    if isinstance(value, list):
        return [_cut(inner, items, characters) for inner in value[:items]]
    if isinstance(value, dict):
        return {name: _cut(inner, items, characters) for name, inner in value.items()}
    return value


def page(stored: StoredResult, wanted: PageRequest) -> ResultPage:
    """Returns one page of a stored result. Raises InvalidRequest for an offset beyond its end."""
    whole = stored.body if stored.items is None else orjson.loads(stored.body)
    if wanted.offset > len(whole):
        raise InvalidRequest(f"offset is beyond the end: this result has {len(whole)}")
    rest = whole[wanted.offset : wanted.offset + (wanted.limit or MAX_PAGE_BYTES)]
    taken = rest if isinstance(rest, str) else list(_fitting(rest))
    end = wanted.offset + len(taken)
    return ResultPage(
        id=str(stored.id),
        unit="characters" if isinstance(taken, str) else "items",
        offset=wanted.offset,
        total=len(whole),
        next_offset=end if end < len(whole) else None,
        result=None if isinstance(taken, str) else taken,
        text=taken if isinstance(taken, str) else None,
    )


def _fitting(items: list[Any]) -> Iterator[Any]:
    """Yields items of MAX_PAGE_BYTES together, but at least one."""
    size = 0
    for position, item in enumerate(items):
        size += len(orjson.dumps(item)) + 1
        if position and size > MAX_PAGE_BYTES:
            return
        yield item
