"""JSON values that come in with a request and go out again: what other JSON libraries cannot write is found here, by its path."""

from __future__ import annotations

import math
from typing import Any

_LEAST, _MOST = -(2**63), 2**64 - 1


def unsendable(value: Any, path: str) -> str | None:
    """Returns `path: problem` of the first number in `value` that is no 64-bit integer and no finite number, or None."""
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
