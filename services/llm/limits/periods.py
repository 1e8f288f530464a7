"""The calendar periods, in UTC, of limits of money. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from contracts.llm.limits import CALENDAR, Meter

DAY_S = 86_400


def period_of(meter: Meter, wall: float) -> str:
    """The UTC day or month of the epoch second `wall`; empty for meters without a calendar."""
    return _period_of_day(meter, int(wall // DAY_S)) if meter in CALENDAR else ""


@lru_cache(maxsize=16)
def _period_of_day(meter: Meter, day: int) -> str:
    moment = datetime.fromtimestamp(day * DAY_S, UTC)
    return f"{moment:%Y-%m-%d}" if meter == "usd_per_day" else f"{moment:%Y-%m}"


def period_bounds(meter: Meter, wall: float) -> tuple[datetime, datetime]:
    """The beginning of that day or month, and of the next one."""
    day = datetime.fromtimestamp(wall, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if meter == "usd_per_day":
        return day, day + timedelta(days=1)
    month = day.replace(day=1)
    return month, (month + timedelta(days=32)).replace(day=1)


def period_left_s(meter: Meter, wall: float) -> float:
    """Seconds to the end of that day or month."""
    return period_bounds(meter, wall)[1].timestamp() - wall
