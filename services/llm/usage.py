"""The use case behind `GET /usage`: checks the range and asks the ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from contracts.errors import InvalidRequest
from contracts.llm.usage import UsageFilter, UsagePage, UsageReader
from contracts.values import now_utc

DEFAULT_RANGE = timedelta(hours=24)
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
MAX_RANGE = timedelta(days=400)


@dataclass(frozen=True)
class UsageQueries:
    """Asks the ledger; without a range for the last 24 hours."""

    reader: UsageReader
    now: Callable[[], datetime] = now_utc

    async def query(self, usage_filter: UsageFilter) -> UsagePage:
        """Returns one page of sums.

        Raises:
            InvalidRequest: `start` is not before `end`, the range is over 400 days, or the cursor
                is foreign.
            DatabaseUnavailable: the ledger cannot be read now.
        """
        end = usage_filter.end or self.now()
        start = usage_filter.start or max(end, EARLIEST) - DEFAULT_RANGE
        if start >= end:
            raise InvalidRequest("start must be before end")
        if end - start > MAX_RANGE:
            raise InvalidRequest(
                f"the range from start to end is longer than {MAX_RANGE.days} days: "
                "ask for less at once"
            )
        return await self.reader.query(usage_filter.model_copy(update={"start": start, "end": end}))
