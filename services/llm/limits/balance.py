"""One replica's units of one limit: spent, held by running calls, free. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from contracts.llm.limits import CALENDAR, Estimate, LimitKey, Spent
from services.llm.limits.windows import SlidingWindow

FORMER_PERIODS = 4
"""Days or months whose sums are kept for a clock that is set back."""
LOW = 4
"""A balance asks for more before a call has to wait, when less than a quarter of its last grant is
free."""


@dataclass(slots=True, eq=False)
class Balance:
    """This replica's units of one limit, counted in the limit's meter.

    The limit:
        limit: its amount, by the present configuration.
        period: the day or month that `spent` counts in; empty for meters without a calendar.
    Spending, since the replica's start or the beginning of `period`:
        spent: units spent.
        sent: `spent` in the last report.
        acknowledged: `spent` in the last answered report.
        recent: when they were spent, for meters of a sliding minute.
        former: `spent` of earlier periods.
        incarnation: as in a report's line.
    Units of the lease:
        free: for further calls.
        held: reserved by running calls.
        stale: of these, reserved under a larger limit; they return to the authority, not to the
            next call.
    What decides how many to ask for:
        granted: units of the last grant; 0 after a refusal.
        since_grant: units taken since then.
        taken_now: units taken since the last heartbeat.
        taken_before: units taken between the two heartbeats before.
        has_request: a report that asks for units is not answered yet.
    The last answer:
        left: units that the authority had left.
        pending: it is still reading the ledger.
        retry_at: when a retry can succeed.
        refused_from, refused_until: amounts this large are refused until then without asking;
            0: none.
    """

    key: LimitKey
    limit: int
    period: str = ""

    spent: int = 0
    sent: int = 0
    acknowledged: int = 0
    recent: SlidingWindow | None = None
    former: dict[str, int] = field(default_factory=dict)
    incarnation: int = 0

    free: int = 0
    held: int = 0
    stale: int = 0

    granted: int = 0
    since_grant: int = 0
    taken_now: int = 0
    taken_before: int = 0
    has_request: bool = False

    left: int = 0
    pending: bool = False
    retry_at: float = 0.0
    refused_from: int = 0
    refused_until: float = 0.0

    def enter(self, period: str) -> None:
        """Enters another day or month, or returns to one after the clock was set back.

        Units granted in the period before lapse.
        """
        if self.spent:
            self.former[self.period] = self.spent
        if len(self.former) > FORMER_PERIODS:
            del self.former[next(iter(self.former))]
        self.period, self.spent = period, self.former.pop(period, 0)
        self.acknowledged = self.sent = self.free = self.refused_from = 0

    def set_limit(self, limit: int) -> None:
        """Takes another limit.

        A smaller limit returns all leased units; the authority grants again from what is left.
        """
        if limit < self.limit:
            self.free, self.stale = 0, self.held
        self.limit = limit

    def take(self, units: int, now: float) -> None:
        """Reserves `units`. A request is spent at once, other units when their call is settled."""
        self.free -= units
        self.since_grant += units
        self.taken_now += units
        if self.key.meter == "requests_per_minute":
            self._spend(units, now)
        else:
            self.held += units

    def settle(self, reserved: int, spent: int, now: float) -> None:
        """Replaces a call's reservation by what it spent."""
        meter = self.key.meter
        if meter == "requests_per_minute":
            self._give_back(reserved - spent)
            return
        self.held -= reserved
        is_stale, self.stale = self.stale > 0, max(0, self.stale - reserved)
        if meter == "concurrent_calls":
            self.free += 0 if is_stale else reserved
            return
        self._spend(spent, now)
        unused = reserved - spent
        self.free = max(0, self.free + (min(unused, 0) if is_stale else unused))

    def is_low(self) -> bool:
        """Whether to ask for more now, before a call has to wait."""
        return self.free * LOW < self.granted

    def is_scarce_slot(self) -> bool:
        """Whether another replica may be waiting for a slot that is free here."""
        return self.key.meter == "concurrent_calls" and not self.left and self.free > 0

    def _spend(self, units: int, now: float) -> None:
        self.spent += units
        if self.recent is not None:
            self.recent.add(now, units)

    def _give_back(self, units: int) -> None:
        """Takes back requests that no provider saw, unless they were reported as spent already."""
        if units > 0 and self.spent - units >= self.sent:
            self.spent -= units
            self.free += units
            if self.recent is not None:
                self.recent.take_back(units)


Plan = tuple[Balance, ...]
"""A caller's balances, one for each of its limits: a call reserves in all of them."""


def amount(balance: Balance, estimate: Estimate) -> int:
    """Units of `balance` that a call reserves."""
    meter = balance.key.meter
    if meter == "tokens_per_minute":
        return estimate.tokens
    return estimate.nano_usd if meter in CALENDAR else 1


def spent_units(balance: Balance, spent: Spent) -> int:
    """Units of `balance` that a call spent."""
    meter = balance.key.meter
    if meter == "requests_per_minute":
        return spent.requests
    return spent.tokens if meter == "tokens_per_minute" else spent.nano_usd
