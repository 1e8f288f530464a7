"""Ranges of a usage query: the default, the bounds, and nothing that crashes."""

from datetime import UTC, datetime, timedelta

import pytest

from contracts.errors import InvalidRequest
from contracts.llm.usage import UsageFilter, UsagePage
from services.llm.usage import UsageQueries

NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)


class Reader:
    """Remembers its queries."""

    asked: UsageFilter

    async def query(self, usage_filter: UsageFilter) -> UsagePage:
        self.asked = usage_filter
        assert usage_filter.start is not None
        assert usage_filter.end is not None
        return UsagePage(rows=[], start=usage_filter.start, end=usage_filter.end)


async def asked(usage_filter: UsageFilter) -> tuple[datetime | None, datetime | None]:
    reader = Reader()
    await UsageQueries(reader, now=lambda: NOW).query(usage_filter)
    return reader.asked.start, reader.asked.end


async def test_without_a_range_it_is_the_last_day() -> None:
    assert await asked(UsageFilter()) == (NOW - timedelta(days=1), NOW)


async def test_a_given_end_moves_the_default_start() -> None:
    end = NOW - timedelta(days=30)
    assert await asked(UsageFilter(end=end)) == (end - timedelta(days=1), end)


async def test_the_other_fields_stay() -> None:
    reader = Reader()
    await UsageQueries(reader, now=lambda: NOW).query(
        UsageFilter(agent_id="agent:sofia", group_by=("day",), limit=7)
    )
    assert (reader.asked.agent_id, reader.asked.group_by, reader.asked.limit) == (
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
async def test_senseless_ranges_are_refused(start: datetime | None, end: datetime | None) -> None:
    with pytest.raises(InvalidRequest):
        await asked(UsageFilter(start=start, end=end))
