"""One replica's units of one limit: spent, held by running calls, free. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from contracts.llm.limits import CALENDAR, Estimate, LimitKey, Spent
from services.llm.limits.protocol import CELL_S, PERIODS, WINDOW_S, Grant, Line, Slot, cell_of

CELLS = math.ceil(WINDOW_S / CELL_S) + 1
"""Cells that a minute touches."""
LOW = 4
"""A balance asks for more before a call has to wait, when less than a quarter of what it was
granted is free."""
REFUSAL_CACHE_S = 0.1
"""How long a refusal is repeated without asking, so that a throttled caller cannot flood the
authority."""

_NO_ANSWER = Grant(0, 0)


@dataclass(slots=True, eq=False)
class Balance:
    """This replica's units of one limit, counted in the limit's meter.

    The limit:
        limit: its amount, by the present configuration.
        period: the present day or month; empty for meters without a calendar.
    Spending:
        spent: units spent by slot.
        unreported: of these, units spent since the last report.
        unanswered: slots in reports that were not answered yet.
    Units of the lease:
        free: for further calls.
        held: reserved by running calls.
        stale: of these, reserved under a larger limit; they return to the authority, not to the
            next call.
    What decides how many to keep, and when to ask for more:
        granted: units of the last grant, or of what a heartbeat kept of it; 0 after a refusal.
        taken_now: units taken since the last heartbeat.
        taken_before: units taken between the two heartbeats before.
        has_request: a report that asks for units is not answered yet.
    The last answer:
        answer: the grant or refusal.
        answered_at: when it came.
    """

    key: LimitKey
    limit: int
    period: str = ""

    spent: dict[Slot, int] = field(default_factory=dict)
    unreported: dict[Slot, int] = field(default_factory=dict)
    unanswered: dict[Slot, int] = field(default_factory=dict)

    free: int = 0
    held: int = 0
    stale: int = 0

    granted: int = 0
    taken_now: int = 0
    taken_before: int = 0
    has_request: bool = False

    answer: Grant = _NO_ANSWER
    answered_at: float = 0.0

    @property
    def retry_at(self) -> float:
        """When a retry can succeed after a refusal."""
        return self.answered_at + self.answer.retry_after_s

    def enter(self, period: str) -> None:
        """Enters another day or month, or returns to one after the clock was set back.

        Units granted in the period before lapse.
        """
        self.period, self.free, self.answer = period, 0, _NO_ANSWER
        if period in self.spent:  # the latest used stands last
            self.spent[period] = self.spent.pop(period)

    def keep_used(self) -> None:
        """Gives back, at a heartbeat, what was not taken between the last two of them or since."""
        used = max(self.taken_now, self.taken_before)
        self.free, self.granted = min(self.free, used), min(self.granted, used)
        self.taken_before, self.taken_now = self.taken_now, 0

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
        self.taken_now += units
        if self.key.meter == "requests_per_minute":
            self._spend(units, cell_of(now))
        else:
            self.held += units

    def settle(self, reserved: int, spent: int, taken_at: float, now: float) -> None:
        """Replaces what a call reserved at `taken_at` by what it spent."""
        unused = reserved - spent
        if self.key.meter == "requests_per_minute":
            # The authority still counts an unreported request as free.
            if unused > 0 and self.unreported.get(cell := cell_of(taken_at), 0) >= unused:
                self._spend(-unused, cell)
                self.free += unused
            return
        self.held -= reserved
        is_stale, self.stale = self.stale > 0, max(0, self.stale - reserved)
        if spent:
            self._spend(spent, self.period or cell_of(now))
        self.free = max(0, self.free + (min(unused, 0) if is_stale else unused))

    def report(self, now: float, *, joining: bool) -> tuple[tuple[Slot, int], ...]:
        """Returns what a report's line says of `spent`, oldest first."""
        if joining:
            oldest = cell_of(now - WINDOW_S)
            self.unanswered = {
                slot: 0 for slot in self.spent if isinstance(slot, str) or slot >= oldest
            }
        else:
            self.unanswered |= self.unreported
            if self.period:  # an authority that forgot a limit needs the whole sum
                self.unanswered[self.period] = 0
        self.unreported = {}
        return tuple((slot, self.spent[slot]) for slot in self.unanswered if slot in self.spent)

    def answered(self, line: Line, grant: Grant | None, now: float) -> None:
        """Takes the answer to a reported line."""
        self.unanswered.clear()
        self.has_request = False
        # Where the limit was lowered or the period ended meanwhile, the grant goes back.
        if grant is None or line.limit > self.limit or line.period != self.period:
            return
        self.answer, self.answered_at = grant, now
        self.granted = grant.units
        self.free += grant.units
        # More than is known here: this balance was dropped and came back.
        if (forgotten := grant.spent - self.spent.get(line.period, 0)) > 0:
            self._spend(forgotten, line.period)

    def refuses(self, units: int, now: float) -> bool:
        """Whether the authority just refused to fill this balance up to `units`."""
        answer = self.answer
        return (
            not answer.units
            and units > self.free + (0 if answer.pending else answer.left)
            and now < self.answered_at + min(answer.retry_after_s, REFUSAL_CACHE_S)
        )

    def is_low(self) -> bool:
        """Whether to ask for more now, before a call has to wait."""
        return self.free * LOW < self.granted

    def is_scarce_slot(self) -> bool:
        """Whether another replica may be waiting for a slot that is free here."""
        return self.key.meter == "concurrent_calls" and not self.answer.left and self.free > 0

    def newest_cell(self) -> int:
        """The last cell with spent units; 0 where none count by the minute."""
        slot = next(reversed(self.spent), 0)
        return slot if isinstance(slot, int) else 0

    def _spend(self, units: int, slot: Slot) -> None:
        self.spent[slot] = self.spent.get(slot, 0) + units
        self.unreported[slot] = self.unreported.get(slot, 0) + units
        if len(self.spent) > (PERIODS if self.period else CELLS):
            del self.spent[next(iter(self.spent))]


Plan = tuple[Balance, ...]
"""A caller's balances, one for each of its limits: a call reserves in all of them."""


def amount(balance: Balance, estimate: Estimate) -> int:
    """Units of `balance` that a call reserves."""
    meter = balance.key.meter
    if meter == "tokens_per_minute":
        return estimate.tokens
    return estimate.nano_usd if meter in CALENDAR else 1


def spent_units(balance: Balance, spent: Spent) -> int:
    """Units of `balance` that a call spent; a slot is only held."""
    meter = balance.key.meter
    if meter == "requests_per_minute":
        return spent.requests
    if meter == "tokens_per_minute":
        return spent.tokens
    return spent.nano_usd if meter in CALENDAR else 0
