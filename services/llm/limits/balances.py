"""A replica's balances: leased units, spent in memory and reported to the authority. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from contracts.llm.limits import CALENDAR, Limit, LimitKey, Spent
from services.llm.limits.balance import Balance, Plan, spent_units
from services.llm.limits.periods import DAY_S, period_of
from services.llm.limits.protocol import SLIDING, TTL_S, WINDOW_S, Grant, Line, Reply, Report
from services.llm.limits.windows import SlidingWindow

MAX_BALANCES = 50_000
RECENT_CELLS = 120
REFUSAL_CACHE_S = 0.1
"""How long a refusal is repeated without asking, so that a throttled caller cannot flood the
authority."""


@dataclass(slots=True)
class Balances:
    """All balances of one replica, and its conversation with the authority.

    `drops` counts unused balances that were dropped: a plan is valid until it changes.
    """

    replica: str
    generation: str = ""
    number: int = 0
    expires: float = 0.0
    joining: bool = False
    learning_until: float = 0.0
    peers: tuple[str, ...] = ()
    _balances: OrderedDict[LimitKey, Balance] = field(default_factory=OrderedDict)
    _active: dict[LimitKey, Balance] = field(default_factory=dict)
    # The most that a dropped balance had spent: a new one counts from there, never from less.
    _spent_floor: int = 0
    _day: float = 0.0
    drops: int = 0

    def plan(self, limits: Iterable[Limit], now: float) -> Plan:
        """Returns the balances behind `limits`."""
        return tuple(self._balance(limit, now) for limit in limits)

    def take(self, plan: Plan, amounts: Sequence[int], now: float, wall: float) -> bool:
        """Reserves all amounts, or nothing."""
        if now >= self.expires:
            return False
        # Units granted in another day or month can no longer be taken.
        if (day := wall // DAY_S) != self._day:
            self._day = day
            for balance in self._active.values():
                self._enter_period(balance, wall)
        for balance, units in zip(plan, amounts, strict=True):
            if balance.free < units:
                return False
        for balance, units in zip(plan, amounts, strict=True):
            balance.take(units, now)
            self._active[balance.key] = balance
        return True

    def settle(
        self, plan: Plan, amounts: Sequence[int], spent: Spent, now: float, wall: float
    ) -> None:
        """Settles what `take` reserved."""
        for balance, units in zip(plan, amounts, strict=True):
            self._enter_period(balance, wall)
            balance.settle(units, spent_units(balance, spent), now)
            if self._balances.get(balance.key) is balance:
                self._active[balance.key] = balance

    def recently_refused(self, plan: Plan, amounts: Sequence[int], now: float) -> Balance | None:
        """Returns the first balance that the authority just refused to fill up to its amount."""
        return next(
            (
                balance
                for balance, units in zip(plan, amounts, strict=True)
                if balance.free < units
                and balance.refused_from
                and units >= balance.refused_from
                and now < balance.refused_until
            ),
            None,
        )

    def report(
        self,
        waiting: Sequence[tuple[Plan, Sequence[int]]],
        now: float,
        wall: float,
        *,
        heartbeat: bool,
    ) -> Report:
        """Returns the next report.

        On a `heartbeat` (once a second) it returns units that the last two of them did not need.
        """
        if now >= self.expires:
            for balance in self._active.values():
                balance.free = 0
        self.number += 1
        needs = _needs(waiting)
        for key, (balance, _, _) in needs.items():
            self._active[key] = balance
        balances = self._balances.values() if self.joining else list(self._active.values())
        lines = [
            self._line(balance, needs.get(balance.key), now, wall, heartbeat=heartbeat)
            for balance in balances
        ]
        if self.joining:
            lines = [
                line
                for line in lines
                if line.held
                or line.free
                or line.need
                or line.recent
                or (line.period and line.spent)
            ]
        return Report(
            self.replica,
            self.generation,
            self.number,
            tuple(lines),
            joining=self.joining,
            peers=self.peers,
        )

    def answered(self, report: Report, reply: Reply, sent_at: float, now: float) -> None:
        """Takes the authority's answer to the last report, never one to an older report."""
        if not reply.known:
            if reply.generation == self.generation:
                # The authority took this replica for dead and counted its units as spent.
                for balance in self._balances.values():
                    balance.free = 0
            self.generation, self.joining = reply.generation, True
            return
        self.joining, self.expires, self.peers = False, sent_at + TTL_S, reply.peers
        self.learning_until = now + reply.learning_s if reply.learning_s else 0.0
        for line in report.lines:
            known = self._balances.get(line.key)
            if known is not None:
                known.acknowledged = line.spent if known.period == line.period else 0
                self._retire_if_idle(known)
        limit_of_request = {line.key: line.limit for line in report.lines}
        for grant in reply.grants:
            self._take_grant(grant, limit_of_request[grant.key], now)

    def wants_exchange(self, plan: Plan) -> bool:
        """Whether a balance runs low and no further units were asked for."""
        return any(balance.is_low() and not balance.has_request for balance in plan)

    def frees_slot(self, plan: Plan) -> bool:
        """Whether another replica may be waiting for a slot that just became free."""
        return any(balance.is_scarce_slot() for balance in plan)

    def leave(self) -> None:
        """Makes the next report return every unit that no running call holds."""
        for balance in self._active.values():
            balance.free = balance.taken_now = balance.taken_before = 0

    def _line(
        self,
        balance: Balance,
        needed: tuple[Balance, int, int] | None,
        now: float,
        wall: float,
        *,
        heartbeat: bool,
    ) -> Line:
        self._enter_period(balance, wall)
        if heartbeat:
            balance.free = min(balance.free, max(balance.taken_now, balance.taken_before))
            balance.taken_before, balance.taken_now = balance.taken_now, 0
        if needed is None and balance.is_scarce_slot():
            balance.free = 0
        least = need = want = 0
        if needed is not None:
            least, need = max(1, needed[1] - balance.free), max(0, needed[2] - balance.free)
        if need or balance.is_low():
            want = max(
                0,
                2 * min(balance.since_grant, balance.taken_now + balance.taken_before)
                - balance.free,
            )
            balance.has_request = True
        balance.sent = balance.spent
        recent = (
            tuple(balance.recent.ages(now)) if self.joining and balance.recent is not None else ()
        )
        return Line(
            balance.key,
            balance.limit,
            balance.period,
            balance.spent,
            balance.acknowledged,
            balance.held,
            balance.free,
            least=least if need else 0,
            need=need,
            want=want,
            recent=recent,
            incarnation=balance.incarnation,
        )

    def _take_grant(self, grant: Grant, limit_of_request: int, now: float) -> None:
        balance = self._balances.get(grant.key)
        if balance is None:
            return
        if limit_of_request > balance.limit:
            # A reload lowered the limit after the report: return the grant.
            balance.has_request = False
            return
        balance.has_request, balance.left, balance.pending = False, grant.left, grant.pending
        balance.free += grant.units
        if grant.units:
            balance.granted, balance.since_grant, balance.refused_from = grant.units, 0, 0
            self._active[balance.key] = balance
            return
        balance.granted, balance.retry_at = 0, now + grant.retry_after_s
        closed = grant.pending or now < self.learning_until
        balance.refused_from = balance.free + 1 + (0 if closed else grant.left)
        balance.refused_until = now + min(grant.retry_after_s, REFUSAL_CACHE_S)

    def _retire_if_idle(self, balance: Balance) -> None:
        """Stops reporting a balance whose state the authority knows."""
        balance.has_request = False
        if not balance.held and not balance.free and balance.spent == balance.acknowledged:
            self._active.pop(balance.key, None)

    def _enter_period(self, balance: Balance, wall: float) -> None:
        if balance.key.meter not in CALENDAR:
            return
        period = period_of(balance.key.meter, wall)
        if period != balance.period:
            balance.enter(period)

    def _balance(self, limit: Limit, now: float) -> Balance:
        balance = self._balances.get(limit.key)
        if balance is None:
            self._make_room(now)
            meter = limit.key.meter
            floor = 0 if meter in CALENDAR else self._spent_floor
            balance = Balance(
                limit.key,
                limit.amount,
                spent=floor,
                acknowledged=floor,
                sent=floor,
                incarnation=self.drops,
            )
            self._balances[limit.key] = balance
            if meter in SLIDING:
                balance.recent = SlidingWindow(WINDOW_S, RECENT_CELLS)
        balance.set_limit(limit.amount)
        self._balances.move_to_end(limit.key)
        return balance

    def _make_room(self, now: float) -> None:
        """Drops the least recently used balances with nothing held and nothing in their window.

        At twice the bound, the window is ignored. Money is not lost with a balance: once
        acknowledged it is at the authority and in the ledger.
        """
        for _ in range(2):
            if len(self._balances) < MAX_BALANCES:
                return
            key, oldest = next(iter(self._balances.items()))
            counts = (
                oldest.recent is not None
                and oldest.recent.used(now)
                and len(self._balances) < 2 * MAX_BALANCES
            )
            if key in self._active or oldest.held or counts:
                self._balances.move_to_end(key)
                continue
            if key.meter not in CALENDAR:
                self._spent_floor = max(self._spent_floor, oldest.spent)
            self.drops += 1
            del self._balances[key]


def _needs(
    waiting: Sequence[tuple[Plan, Sequence[int]]],
) -> dict[LimitKey, tuple[Balance, int, int]]:
    """Returns by limit: balance, the smallest amount that a call waits for, sum of all amounts."""
    needs: dict[LimitKey, tuple[Balance, int, int]] = {}
    for plan, amounts in waiting:
        for balance, units in zip(plan, amounts, strict=True):
            known = needs.get(balance.key)
            needs[balance.key] = (
                (balance, min(known[1], units), known[2] + units)
                if known
                else (balance, units, units)
            )
    return needs
