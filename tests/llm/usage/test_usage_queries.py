"""Ranges of a usage query: the default, the bounds, and nothing that crashes."""

from datetime import UTC, datetime, timedelta

import pytest

from contracts.errors import InvalidRequest
from contracts.llm.usage import UsageFilter

NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)


def asked(usage_filter: UsageFilter) -> tuple[datetime | None, datetime | None]:
    ranged = usage_filter.ranged(NOW)
    return ranged.start, ranged.end


def test_without_a_range_it_is_the_last_day() -> None:
    assert asked(UsageFilter()) == (NOW - timedelta(days=1), NOW)


def test_a_given_end_moves_the_default_start() -> None:
    end = NOW - timedelta(days=30)
    assert asked(UsageFilter(end=end)) == (end - timedelta(days=1), end)


def test_the_other_fields_stay() -> None:
    ranged = UsageFilter(agent_id="agent:sofia", group_by=("day",), limit=7).ranged(NOW)
    assert (ranged.agent_id, ranged.group_by, ranged.limit) == (
        "agent:sofia",
        ("day",),
        7,
    )


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (NOW, NOW),
        (NOW, NOW - timedelta(seconds=1)),
        (NOW + timedelta(days=1), None),
        (NOW - timedelta(days=401), None),
        (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
        (None, datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_senseless_ranges_are_refused(start: datetime | None, end: datetime | None) -> None:
    with pytest.raises(InvalidRequest):
        asked(UsageFilter(start=start, end=end))
