"""How long a server asks to wait before the next request: the `Retry-After` header (RFC 9110,
10.2.3). Pure; nothing that it holds is trusted.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_S = 86_400.0
_MAX_CHARS = 128
"""Longer values are no date and no sensible number; reading digits is quadratic in their number."""


def retry_after_s(
    value: str | None, milliseconds: str | None = None, *, now: datetime | None = None
) -> float | None:
    """Returns the seconds that a Retry-After header asks for (a number or an HTTP date), at most a
    day; None if unreadable.

    `milliseconds` is the finer `retry-after-ms` that some providers send beside it; it wins where
    it can be read.
    """
    if milliseconds is not None and (finer := _bounded(_number(milliseconds) / 1000)) is not None:
        return finer
    if value is None:
        return None
    seconds = _number(value)
    return _bounded(
        _seconds_until(value, now or datetime.now(UTC)) if math.isnan(seconds) else seconds
    )


def _bounded(seconds: float) -> float | None:
    return min(seconds, MAX_RETRY_AFTER_S) if 0 <= seconds < math.inf else None


def _number(text: str) -> float:
    try:
        return float(text) if len(text) <= _MAX_CHARS else math.nan
    except ValueError:
        return math.nan


def _seconds_until(date: str, now: datetime) -> float:
    if len(date) > _MAX_CHARS:
        return math.nan
    try:
        moment = parsedate_to_datetime(date)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - now).total_seconds())
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
        # The parser lets through what `datetime` then refuses, and fails by itself on some
        # nonsense.
        return math.nan
