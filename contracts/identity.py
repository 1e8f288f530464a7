"""Who acts and for whom: identifiers, the tenant, new ids, and pages of what belongs to one."""

import re
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Generic, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from contracts.shapes import Frozen, Strict

MAX_PAGE = 200
_EPOCH = datetime.fromtimestamp(0, UTC)
_LAST_MS = 253_402_300_799_000
"""The end of the year 9999, the last one that a datetime can hold."""
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def is_plain(value: str) -> bool:
    """Whether it holds neither control characters nor lone surrogates."""
    return (value.isascii() and value.isprintable()) or not _FORBIDDEN.search(value)


def plain(value: str) -> str:
    """Returns `value`. Raises ValueError where it holds control characters or lone surrogates."""
    if not is_plain(value):
        raise ValueError("must not hold control characters or lone surrogates")
    return value


Identifier = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(plain)]
"""The id of an agent, a microDAO, a channel, a user: 1 to 256 characters."""

Cursor = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""Where a page begins: the `next_cursor` of the page before it."""


def _pattern(value: str) -> str:
    if "*" in value[:-1]:
        raise ValueError("`*` may only stand at the end")
    if value != value.strip():
        raise ValueError("must not begin or end with a space")
    return value


Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_pattern)]
"""An id, or its beginning followed by `*`."""


def matches(pattern: str, value: str) -> bool:
    """Whether the pattern names `value`."""
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


class Tenant(Frozen):
    """One agent in one microDAO: the owner of memories."""

    microdao_id: Identifier
    agent_id: Identifier


Item = TypeVar("Item", bound=BaseModel)


class PageQuery(Strict):
    """The part of a query that asks for one page, of at most `limit` items."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 50
    cursor: Cursor | None = None


class Page(BaseModel, Generic[Item]):
    """One page of a list. `next_cursor` leads to the next page and is absent on the last."""

    items: list[Item]
    next_cursor: str | None = None


def as_uuid(text: str) -> UUID | None:
    """Returns the id that a path names; None for a text that is no id, which names nothing.

    One id has one spelling: what is stored under an id as text is found, and erased, by it.
    """
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None


def time_of(of: UUID) -> datetime:
    """Returns the moment, to the millisecond, at which `new_id` gave this id."""
    return datetime.fromtimestamp(min(of.int >> 80, _LAST_MS) / 1_000, UTC)


def first_id(at: datetime) -> UUID:
    """Returns an id that is above all that `new_id` gave before this moment, and below others."""
    return UUID(int=max(0, -((_EPOCH - at) // timedelta(milliseconds=1))) << 80)


def new_id() -> UUID:
    """Returns a time-ordered unique id (RFC 9562, version 7): an index over ids grows at one end.

    The 74 bits beside the time come from the kernel: ids cannot be guessed from other ids.
    """
    milliseconds = time.time_ns() // 1_000_000
    entropy = secrets.randbits(74)
    value = (
        (milliseconds & (2**48 - 1)) << 80
        | 7 << 76
        | (entropy >> 62) << 64
        | 2 << 62
        | entropy & (2**62 - 1)
    )
    return UUID(int=value)
