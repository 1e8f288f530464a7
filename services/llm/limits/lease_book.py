"""Exact limits across replicas by leased escrow: the authority's book.

Pure; time comes in as arguments.

Spent units count for a sliding minute or a calendar period. Units that a replica was granted and
has neither spent nor returned are outstanding and count as well. The book grants only the limit
minus both, so the limit holds whatever replicas do with their units. Replicas report absolute
values under growing numbers, so a lost or repeated message changes nothing. A replica that is
silent for longer than its grants live counts as dead, and its outstanding units as spent.

A new book knows nothing. It learns, and grants nothing, until every replica that spent units within
the last window has joined and reported them, or that window has passed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from contracts.llm.limits import CALENDAR, WARN_PERCENT, LimitKey, LimitWarning
from services.llm.limits.periods import period_left_s, period_of
from services.llm.limits.protocol import (
    CELL_S,
    GRACE_S,
    HEARTBEAT_S,
    PERIODS,
    SLIDING,
    TTL_S,
    WINDOW_S,
    Grant,
    Line,
    Reply,
    Report,
    Standing,
    lease_size,
)

MAX_KEYS = 100_000
LEARNING_S = TTL_S + GRACE_S
PENDING_RETRY_S = 0.5
SKEW_S = 10.0
"""How long a replica's clock may show another day or month than the authority's before the book
counts its spending in the authority's period, too."""
RUNNING_RETRY_S = 5.0
"""Reported as the wait when running calls, whose end is unknown, hold the missing units."""


@dataclass(slots=True)
class _Share:
    """One replica's units of one limit.

    `cells` are the units spent within the last minute by cell of the replica's clock, which is
    `offset` behind the authority's; `spent` is their sum. `lost` units were outstanding when the
    replica fell silent, and count as spent until `lost_until`. `other_period_since`: since then
    the replica's clock has shown another period than the authority's.
    """

    held: int = 0
    free: int = 0
    cells: dict[int, int] = field(default_factory=dict)
    spent: int = 0
    offset: float = 0.0
    lost: int = 0
    lost_until: float = 0.0
    other_period_since: float | None = None

    def spend(self, cell: int, units: int) -> None:
        """Takes the units spent in a cell."""
        self.spent += units - self.cells.get(cell, 0)
        self.cells[cell] = units

    def used(self, now: float) -> int:
        """Returns the units that count as spent."""
        expired = (now - self.offset - WINDOW_S) / CELL_S
        while self.cells and (cell := next(iter(self.cells))) <= expired:
            self.spent -= self.cells.pop(cell)
        return self.spent + (self.lost if now < self.lost_until else 0)

    def endings(self, now: float) -> list[tuple[float, int]]:
        """Returns pairs of (seconds until units stop counting, units)."""
        self.used(now)
        shift = self.offset + WINDOW_S - now
        endings = [(cell * CELL_S + shift, units) for cell, units in self.cells.items()]
        if now < self.lost_until:
            endings.append((self.lost_until - now, self.lost))
        return endings


@dataclass(slots=True)
class _Account:
    """One limit.

    Money: `spending` is by period and replica, what was reported or else read from the ledger; of
    the periods in `read` it is complete, and of those after `unknown_until`, which this book saw
    from their start.

    `warned` is the period and the limit of the last warning, `warm_until` the end of the window in
    which a limit per minute was last nearly used up.
    """

    unknown_until: str
    period: str = ""
    shares: dict[str, _Share] = field(default_factory=dict)
    spending: dict[str, dict[str, int]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    warned: tuple[str, int] = ("", 0)
    warm_until: float = 0.0

    def spent_in(self, period: str) -> dict[str, int]:
        """Returns the spending in `period` by replica; forgets the least recently used one."""
        known = self.spending[period] = self.spending.pop(period, {})
        if len(self.spending) > PERIODS:
            oldest = next(other for other in self.spending if other != self.period)
            del self.spending[oldest]
            self.read.discard(oldest)
            self.unknown_until = max(self.unknown_until, oldest)
        return known

    def is_complete(self) -> bool:
        """Whether all spending of the present period is known."""
        return not self.period or self.period in self.read or self.period > self.unknown_until

    def used(self, now: float) -> int:
        """Returns the units that count as spent."""
        spent = sum(share.used(now) for share in self.shares.values())
        return spent + sum(self.spending.get(self.period, {}).values())

    def must_warn(self, used: int, limit: int, now: float) -> bool:
        """Whether to warn of so many used units: once per period; of a limit per minute, once until
        it was not nearly used up for a whole window. A larger limit is warned of anew.
        """
        if used * 100 < limit * WARN_PERCENT:
            return False
        is_new = (
            self.period != self.warned[0]
            or limit > self.warned[1]
            or (not self.period and now >= self.warm_until)
        )
        self.warm_until = now + WINDOW_S
        if is_new:
            self.warned = self.period, limit
        return is_new

    def outstanding(self) -> int:
        return sum(share.held + share.free for share in self.shares.values())

    def endings(self, now: float) -> list[tuple[float, int]]:
        """Returns in order pairs of (seconds until units stop counting, units)."""
        return sorted(ending for share in self.shares.values() for ending in share.endings(now))


@dataclass(slots=True)
class _Replica:
    seen: float
    number: int
    alive: bool = True


class LeaseBook:
    """The accounts of all limits.

    `generation` is unique to this book; `started` is the moment (monotonic) when it began to learn.
    """

    def __init__(self, generation: str, started: float, *, learning_s: float = LEARNING_S) -> None:
        self.generation = generation
        self._started = started
        self._learning_s = learning_s
        self._accounts: OrderedDict[LimitKey, _Account] = OrderedDict()
        self._replicas: dict[str, _Replica] = {}
        self._unjoined_peers: set[str] = set()
        self._unread: set[LimitKey] = set()
        self._warnings: list[LimitWarning] = []

    def exchange(self, report: Report, now: float, wall: float) -> Reply:
        """Takes a replica's report and grants what it asks for.

        `now` is monotonic, `wall` the time of day, in seconds.
        """
        self._expire_silent(now)
        replica = self._replicas.get(report.replica)
        if report.generation != self.generation or (
            not report.joining and (replica is None or not replica.alive)
        ):
            return Reply(self.generation, known=False)
        if replica is not None and report.number <= replica.number:
            return Reply(self.generation, known=True, peers=tuple(self._replicas))
        self._arrive(report, now)
        for line in report.lines:
            self._count(report, line, now, wall)
        grants = {
            line.key: self._grant(report.replica, line, now, wall)
            for line in report.lines
            if line.asks
        }
        return Reply(self.generation, known=True, grants=grants, peers=tuple(self._replicas))

    def learning_s(self, now: float) -> float:
        """Returns the seconds until the book expects to grant; zero once it has learned."""
        learns_for = WINDOW_S + LEARNING_S if self._unjoined_peers else self._learning_s
        return max(0.0, self._started + learns_for - now)

    def unread(self) -> list[LimitKey]:
        """Returns limits of money whose present period was not yet read from the ledger."""
        return list(self._unread)

    def take_warnings(self) -> list[LimitWarning]:
        """Returns the warnings since the last call."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def load(self, key: LimitKey, period: str, spent: Mapping[str, int]) -> None:
        """Takes the spending by replica that the ledger holds for `key` in `period`."""
        account = self._accounts.get(key)
        if account is not None and account.period == period and key in self._unread:
            for replica, units in spent.items():
                _raise(account.spent_in(period), replica, units)
            account.read.add(period)
            self._unread.discard(key)

    def standing(self, key: LimitKey, limit: int, now: float, wall: float) -> Standing:
        """Returns how a limit stands."""
        self._expire_silent(now)
        account = self._account(key, now, wall)
        used, reserved = account.used(now), account.outstanding()
        reset: float | None = None
        if key.meter in SLIDING:
            reset = max((wait for wait, _ in account.endings(now)), default=0.0)
        elif key.meter in CALENDAR:
            reset = period_left_s(key.meter, wall)
        return Standing(key, used, reserved, max(0, limit - used - reserved), reset)

    def _arrive(self, report: Report, now: float) -> None:
        self._replicas[report.replica] = _Replica(now, report.number)
        if report.joining and now < self._started + WINDOW_S + LEARNING_S:
            self._unjoined_peers.update(report.peers)
        self._unjoined_peers -= self._replicas.keys()

    def _count(self, report: Report, line: Line, now: float, wall: float) -> None:
        """Takes what a line says of one replica's units."""
        account = self._account(line.key, now, wall)
        share = account.shares.setdefault(report.replica, _Share())
        share.held, share.free, share.lost = line.held, line.free, 0
        share.offset = now - report.now
        more_money = 0
        for slot, units in line.spent:
            if isinstance(slot, int):
                share.spend(slot, units)
            else:
                more_money += _raise(account.spent_in(slot), report.replica, units)
        if line.period == account.period:
            share.other_period_since = None
        elif share.other_period_since is None:
            share.other_period_since = now
        elif now - share.other_period_since > SKEW_S:
            # Under a name of its own, because the replica's sum in this period does not hold it.
            spent, name = account.spent_in(account.period), f"{report.replica}, other clock"
            _raise(spent, name, spent.get(name, 0) + more_money)
        if line.key.meter != "concurrent_calls":  # a state that passes, nothing to be used up
            used = account.used(now)
            if account.must_warn(used, line.limit, now):
                self._warnings.append(LimitWarning(line.key, line.limit, used, account.period))

    def _grant(self, replica: str, line: Line, now: float, wall: float) -> Grant:
        account = self._accounts[line.key]
        left = max(0, line.limit - account.used(now) - account.outstanding())
        if (learning := self.learning_s(now)) > 0:
            return Grant(0, left, learning, pending="learning")
        if not account.is_complete():
            return Grant(0, left, PENDING_RETRY_S, pending="ledger")
        share = account.shares[replica]
        lease = lease_size(line.limit, left + share.free) - share.free
        units = min(left, max(line.need, lease))
        if units < line.least or units <= 0:
            return Grant(0, left, self._retry_after_s(line, account, left, now, wall))
        share.free += units
        spent = account.spent_in(line.period).get(replica, 0)
        return Grant(units, left - units, spent=spent)

    def _retry_after_s(
        self, line: Line, account: _Account, left: int, now: float, wall: float
    ) -> float:
        """Returns the seconds until a retry can succeed."""
        if line.key.meter in CALENDAR:
            return period_left_s(line.key.meter, wall)
        short = max(1, line.least - left)
        idle = sum(share.free for share in account.shares.values())
        if line.key.meter not in SLIDING or idle >= short:
            return HEARTBEAT_S
        for wait, units in account.endings(now):
            short -= units
            if short <= 0:
                return wait
        return RUNNING_RETRY_S

    def _expire_silent(self, now: float) -> None:
        """Counts leases of silent replicas as spent; forgets replicas once their window is over."""
        for name, replica in list(self._replicas.items()):
            if replica.alive and replica.seen + TTL_S + GRACE_S < now:
                replica.alive = False
                self._lose_leases(name, replica.seen + TTL_S)
            if replica.seen + TTL_S + GRACE_S + WINDOW_S < now:
                del self._replicas[name]
                for account in self._accounts.values():
                    if not account.period:  # money counts to the end of the period
                        account.shares.pop(name, None)
        if self._unjoined_peers and now >= self._started + WINDOW_S + LEARNING_S:
            self._unjoined_peers.clear()

    def _lose_leases(self, name: str, spent_by: float) -> None:
        """Counts a replica's outstanding units as spent at `spent_by`; slots become free."""
        for key, account in self._accounts.items():
            if (share := account.shares.get(name)) is not None:
                share.lost, share.held, share.free = share.held + share.free, 0, 0
                if key.meter in CALENDAR:
                    share.lost_until = math.inf
                elif key.meter in SLIDING:
                    share.lost_until = spent_by + WINDOW_S

    def _account(self, key: LimitKey, now: float, wall: float) -> _Account:
        period = period_of(key.meter, wall)
        account = self._accounts.get(key)
        if account is None:
            self._make_room(now)
            account = self._accounts[key] = _Account(period)
        if account.period != period:
            self._enter_period(key, account, period)
        self._accounts.move_to_end(key)
        return account

    def _make_room(self, now: float) -> None:
        """Drops the least recently used limits with no units; at twice the bound, any."""
        while len(self._accounts) >= MAX_KEYS:
            key, account = next(iter(self._accounts.items()))
            busy = account.outstanding() or (not account.period and account.used(now))
            if len(self._accounts) < 2 * MAX_KEYS and busy:
                break
            del self._accounts[key]
            self._unread.discard(key)

    def _enter_period(self, key: LimitKey, account: _Account, period: str) -> None:
        """Enters the next day or month, or an earlier one when the clock was set back.

        The ledger is read in any case: an earlier authority whose clock ran ahead may have granted
        in that period. The leases of silent replicas count in the period that ends.
        """
        for name in list(account.shares):
            if (replica := self._replicas.get(name)) is None or not replica.alive:
                spent = account.spent_in(account.period)
                _raise(spent, name, spent.get(name, 0) + account.shares.pop(name).lost)
        account.period = period
        self._unread.add(key)


def _raise(spent: dict[str, int], replica: str, units: int) -> int:
    """Raises a replica's sum to `units`, and returns by how much."""
    more = max(0, units - spent.get(replica, 0))
    spent[replica] = spent.get(replica, 0) + more
    return more
