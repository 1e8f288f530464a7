"""A replica's balances: leased units, spent in memory and reported to the authority. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from contracts.llm.limits import CALENDAR, Limit, LimitKey, Spent
from services.llm.limits.balance import CELLS, Balance, Plan, spent_units
from services.llm.limits.periods import DAY_S, period_of
from services.llm.limits.protocol import TTL_S, Line, Reply, Report, cell_of

MAX_BALANCES = 50_000


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
    peers: tuple[str, ...] = ()
    drops: int = 0
    _balances: OrderedDict[LimitKey, Balance] = field(default_factory=OrderedDict)
    _active: dict[LimitKey, Balance] = field(default_factory=dict)
    _day: float = 0.0

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
                _enter_period(balance, wall)
        for balance, units in zip(plan, amounts, strict=True):
            if balance.free < units:
                return False
        for balance, units in zip(plan, amounts, strict=True):
            balance.take(units, now)
            self._active[balance.key] = balance
        return True

    def settle(
        self,
        plan: Plan,
        amounts: Sequence[int],
        spent: Spent,
        *,
        taken_at: float,
        now: float,
        wall: float,
    ) -> None:
        """Settles what `take` reserved at `taken_at`."""
        for balance, units in zip(plan, amounts, strict=True):
            _enter_period(balance, wall)
            balance.settle(units, spent_units(balance, spent), taken_at, now)
            if self._balances.get(balance.key) is balance:
                self._active[balance.key] = balance

    def recently_refused(
        self, plan: Plan, amounts: Sequence[int], now: float
    ) -> tuple[Balance, int] | None:
        """Returns the first balance that the authority just refused to fill, and its amount."""
        pairs = zip(plan, amounts, strict=True)
        return next((pair for pair in pairs if pair[0].refuses(pair[1], now)), None)

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
        self._active |= {balance.key: balance for balance in needs}
        balances = self._balances.values() if self.joining else self._active.values()
        lines = [
            self._line(balance, needs.get(balance), now, wall, heartbeat=heartbeat)
            for balance in balances
        ]
        return Report(
            self.replica,
            self.generation,
            self.number,
            now,
            tuple(line for line in lines if line.spent or line.key in self._active),
            joining=self.joining,
            peers=self.peers,
        )

    def answered(self, report: Report, reply: Reply, now: float) -> None:
        """Takes the authority's answer to the last report, never one to an older report."""
        if not reply.known:
            self.generation, self.joining = reply.generation, True
            return
        self.joining, self.expires, self.peers = False, report.now + TTL_S, reply.peers
        for line in report.lines:
            self._active.pop(line.key, None)
            balance, grant = self._balances.get(line.key), reply.grants.get(line.key)
            if balance is None:
                continue
            balance.answered(line, grant, now)
            # Reported until the authority knows that nothing is out.
            if balance.held or balance.free or balance.unreported or (grant and grant.units):
                self._active[line.key] = balance

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
        amounts: list[int] | None,
        now: float,
        wall: float,
        *,
        heartbeat: bool,
    ) -> Line:
        """Returns what to report; `amounts` are those of waiting calls."""
        _enter_period(balance, wall)
        if heartbeat:
            balance.keep_used()
        least = need = 0
        if amounts is not None:
            need = max(0, sum(amounts) - balance.free)
            least = max(1, min(amounts) - balance.free)
        elif balance.is_scarce_slot():
            balance.free = 0
        balance.has_request = need > 0 or balance.is_low()
        return Line(
            balance.key,
            balance.limit,
            balance.period,
            balance.report(now, joining=self.joining),
            balance.held,
            balance.free,
            least=least if need else 0,
            need=need,
            asks=balance.has_request,
        )

    def _balance(self, limit: Limit, now: float) -> Balance:
        balance = self._balances.get(limit.key)
        if balance is None:
            self._make_room(now)
            balance = self._balances[limit.key] = Balance(limit.key, limit.amount)
        balance.set_limit(limit.amount)
        self._balances.move_to_end(limit.key)
        return balance

    def _make_room(self, now: float) -> None:
        """Drops the least recently used balances with nothing to report and nothing in their
        window.

        At twice the bound, the window is ignored. Nothing is lost with a balance: it is at the
        authority, which tells it with the next grant.
        """
        for _ in range(2):
            if len(self._balances) < MAX_BALANCES:
                return
            key, oldest = next(iter(self._balances.items()))
            # A cell that still grows must not begin again.
            kept_cells = CELLS if len(self._balances) < 2 * MAX_BALANCES else 1
            if key in self._active or oldest.newest_cell() > cell_of(now) - kept_cells:
                self._balances.move_to_end(key)
            else:
                self.drops += 1
                del self._balances[key]


def _enter_period(balance: Balance, wall: float) -> None:
    if balance.key.meter not in CALENDAR:
        return
    period = period_of(balance.key.meter, wall)
    if period != balance.period:
        balance.enter(period)


def _needs(waiting: Sequence[tuple[Plan, Sequence[int]]]) -> dict[Balance, list[int]]:
    """Returns by balance the amounts that calls wait for."""
    needs: dict[Balance, list[int]] = {}
    for plan, amounts in waiting:
        for balance, units in zip(plan, amounts, strict=True):
            needs.setdefault(balance, []).append(units)
    return needs
