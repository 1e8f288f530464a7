"""Reads from a provider's headers how much of our rate limit is left. Pure.

OpenAI, Groq, Azure, Mistral and most gateways send `x-ratelimit-remaining-requests` and `-tokens`,
and the same with `-limit-` and `-reset-`, per model
(https://platform.openai.com/docs/guides/rate-limits). The upstream is not trusted: an unreadable
header counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

RESET_S = 60.0
"""Assumed reset time where none is sent: providers count by the minute."""
MAX_RESET_S = 3_600.0

_KINDS = ("requests", "tokens")
_NUMBER = re.compile(r"\d{1,15}")
_DURATION = re.compile(
    r"(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?"
    r"(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)


@dataclass(frozen=True, slots=True)
class Quota:
    """`share` (0 to 1) of the limit is left; valid until `until`, in monotonic seconds."""

    share: float
    until: float


def quota_of(headers: Mapping[str, str], now: float) -> Quota | None:
    """Returns the scarcest quota in an answer's headers (looked up in lower case), or None."""
    found = [quota for kind in _KINDS if (quota := _of_kind(kind, headers, now)) is not None]
    return min(found, key=lambda quota: quota.share, default=None)


def _of_kind(kind: str, headers: Mapping[str, str], now: float) -> Quota | None:
    remaining = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
    if remaining is None:
        return None
    limit = _number(headers.get(f"x-ratelimit-limit-{kind}"))
    share = min(1.0, remaining / limit) if limit else float(remaining > 0)
    return Quota(share, now + _duration_s(headers.get(f"x-ratelimit-reset-{kind}")))


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and _NUMBER.fullmatch(value.strip()) else None


def _duration_s(value: str | None) -> float:
    """Seconds of `6m0s`, `20ms` or `1.5`."""
    text = (value or "").strip()
    if _NUMBER.fullmatch(text):
        return min(float(text), MAX_RESET_S)
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        return RESET_S
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return min(hours * 3600 + minutes * 60 + seconds + milliseconds / 1000, MAX_RESET_S)
