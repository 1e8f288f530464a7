"""The limit authority inside one process."""

import asyncio
import time

from contracts.errors import LimitsUnavailable
from contracts.llm.limits import CALENDAR, Limit, LimitKey
from services.llm.limits.lease_book import LeaseBook
from services.llm.limits.periods import period_of


class InProcessAuthority:
    """The real book behind the port, with a call's delay.

    `away` makes it unreachable, `restart` makes it forget.
    """

    def __init__(self, *, learning_s=0.0, ledger=None):
        self._learning_s = learning_s
        self._restarts = 0
        self.ledger = ledger if ledger is not None else {}
        self.calls = 0
        self.away = False
        self.restart()

    def restart(self):
        self._restarts += 1
        self.book = LeaseBook(
            f"generation-{self._restarts}", time.monotonic(), learning_s=self._learning_s
        )

    async def exchange(self, report):
        self.calls += 1
        await asyncio.sleep(0.001)
        if self.away:
            raise LimitsUnavailable("away")
        reply = self.book.exchange(report, time.monotonic(), time.time())
        for key in self.book.unread():
            self.read_ledger(key)
        return reply

    async def standing(self, wanted):
        return [
            self.book.standing(limit.key, limit.amount, time.monotonic(), time.time())
            for limit in wanted
        ]

    def read_ledger(self, key):
        self.book.load(key, period_of(key.meter, time.time()), self.ledger.get(key, {}))


def limits(**amounts):
    """Returns what a limiter asks: the given limits for every agent; money in USD."""

    def of(caller):
        return [
            Limit(
                LimitKey("agent", caller.agent_id, meter),
                round(value * 10**9) if meter in CALENDAR else value,
            )
            for meter, value in amounts.items()
            if value is not None
        ]

    return of


def requests_per_minute(limit):
    """Returns what a limiter asks: this limit, or none, for every agent."""
    return limits(requests_per_minute=limit)
