"""Values that the database and other JSON libraries can hold: texts, instants, numbers."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime

MAX_TEXT = 256
"""Characters of a text in the ledgers."""

_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_LEAST, _MOST = -(2**63), 2**64 - 1


def is_storable(value: str) -> bool:
    """Whether PostgreSQL can hold a text: no NUL, no lone surrogate."""
    return _UNSTORABLE.search(value) is None


def storable(value: str) -> str:
    """Returns `value`. Raises ValueError when PostgreSQL cannot hold it."""
    if not is_storable(value):
        raise ValueError("must not hold NUL characters or lone surrogates")
    return value


def not_blank(value: str) -> str:
    """Returns `value`. Raises ValueError for white space alone."""
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def storable_text(value: str) -> str:
    """Returns `value` without NUL and lone surrogates, cut at `MAX_TEXT` characters.

    It replaces instead of refusing: a call that was served must be accounted for.
    """
    if value.isascii() and "\0" not in value:
        return value[:MAX_TEXT]
    return value[:MAX_TEXT].replace("\0", "�").encode("utf-8", "replace").decode("utf-8")


def utc(value: datetime) -> datetime:
    """Returns the same instant in UTC. Raises ValueError outside the years 1 to 9999."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie within the years 1 to 9999 in UTC") from None


def now_utc() -> datetime:
    """Returns the current time in UTC."""
    return datetime.now(UTC)


Instant = Annotated[AwareDatetime, AfterValidator(utc)]


def unsendable(value: Any, path: str) -> str | None:
    """Returns `path: problem` of the first number that is infinite or exceeds 64 bits, or None."""
    if isinstance(value, dict):
        found = (unsendable(each, f"{path}.{key}") for key, each in value.items())
    elif isinstance(value, list | tuple):
        found = (unsendable(each, f"{path}[{index}]") for index, each in enumerate(value))
    else:
        problem = _problem(value)
        return f"{path}: {problem}" if problem else None
    return next((mistake for mistake in found if mistake), None)


def _problem(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and not _LEAST <= value <= _MOST:
        return "an integer must fit in 64 bits"
    return None
