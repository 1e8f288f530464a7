"""Exact limits across replicas by leased escrow: the authority's book.

Pure; time comes in as arguments.

Spent units count for a window (a sliding minute, a calendar day or month). Units that a replica was
granted and has neither spent nor returned are outstanding and count as well. The book grants only
the limit minus both, so the limit holds whatever replicas do with their units. Replicas report
absolute values under growing numbers, so a lost or repeated message changes nothing. A replica that
is silent for longer than its grants live counts as dead, and its outstanding units as spent.

A new book knows nothing. It learns, and grants nothing, until every replica that spent units within
the last window has joined and reported them, or that window has passed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from contracts.llm.limits import CALENDAR, LimitKey
from services.llm.limits.periods import period_left_s, period_of
from services.llm.limits.protocol import (
    GRACE_S,
    HEARTBEAT_S,
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
from services.llm.limits.windows import SlidingWindow

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

    `counted` is its spending in the account's calendar period and its present incarnation,
    `earlier` that of incarnations before. `period` is the period by the replica's clock,
    `other_period_since` the moment since which that differs from the account's.
    """

    spent: int = 0
    counted: int = 0
    earlier: int = 0
    incarnation: int = 0
    held: int = 0
    free: int = 0
    period: str = ""
    other_period_since: float | None = None

    @property
    def outstanding(self) -> int:
        return self.held + self.free


@dataclass(slots=True)
class _Account:
    """One limit.

    `ledger` is the spending by replica in this period, as read last; None before the first read.
    `former` is the period before with its spending by replica (None: never read), `latest` the
    latest period that was entered.
    """

    period: str
    window: SlidingWindow | None = None
    shares: dict[str, _Share] = field(default_factory=dict)
    ledger: dict[str, int] | None = None
    former: tuple[str, dict[str, int] | None] = ("", None)
    latest: str = ""

    def spent(self) -> dict[str, int]:
        """Returns the spending in this period by replica."""
        spent = dict(self.ledger or {})
        for replica, share in self.shares.items():
            spent[replica] = max(share.earlier + share.counted, spent.get(replica, 0))
        return spent

    def used(self, now: float) -> int:
        return sum(self.spent().values()) if self.window is None else self.window.used(now)

    def outstanding(self) -> int:
        return sum(share.held + share.free for share in self.shares.values())


@dataclass(slots=True)
class _Replica:
    seen: float
    number: int
    alive: bool = True
    keys: set[LimitKey] = field(default_factory=set)


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
            return Reply(self.generation, known=True, peers=self._peers())
        self._arrive(report, now)
        for line in report.lines:
            self._count(report, line, now, wall)
        learning = self.learning_s(now)
        grants = [
            self._grant(report.replica, line, now, wall, learning)
            for line in report.lines
            if line.need or line.want
        ]
        return Reply(
            self.generation,
            known=True,
            grants=tuple(grants),
            peers=self._peers(),
            learning_s=learning,
        )

    def learning_s(self, now: float) -> float:
        """Returns the seconds until the book expects to grant; zero once it has learned."""
        if self._unjoined_peers:
            return max(0.0, self._started + WINDOW_S + LEARNING_S - now)
        return max(0.0, self._started + self._learning_s - now)

    def unread(self) -> list[LimitKey]:
        """Returns limits of money whose present period was not yet read from the ledger."""
        return list(self._unread)

    def load(self, key: LimitKey, period: str, spent: Mapping[str, int]) -> None:
        """Takes the spending by replica that the ledger holds for `key` in `period`."""
        account = self._accounts.get(key)
        if account is not None and account.period == period and key in self._unread:
            known = account.ledger or {}
            account.ledger = {
                replica: max(spent.get(replica, 0), known.get(replica, 0))
                for replica in {*spent, *known}
            }
            self._unread.discard(key)

    def standing(self, key: LimitKey, limit: int, now: float, wall: float) -> Standing:
        """Returns how a limit stands."""
        self._expire_silent(now)
        account = self._account(key, now, wall)
        used, reserved = account.used(now), account.outstanding()
        reset: float | None = None
        if account.window is not None:
            reset = account.window.empty_in_s(now)
        elif key.meter in CALENDAR:
            reset = period_left_s(key.meter, wall)
        return Standing(key, used, reserved, max(0, limit - used - reserved), reset)

    def _arrive(self, report: Report, now: float) -> None:
        replica = self._replicas.get(report.replica)
        if replica is None:
            replica = self._replicas[report.replica] = _Replica(now, report.number)
        replica.seen, replica.number, replica.alive = now, report.number, True
        if report.joining and now < self._started + WINDOW_S + LEARNING_S:
            self._unjoined_peers.update(peer for peer in report.peers if peer not in self._replicas)
        self._unjoined_peers.discard(report.replica)

    def _count(self, report: Report, line: Line, now: float, wall: float) -> None:
        """Takes what a line says of one replica's units."""
        account = self._account(line.key, now, wall)
        share = account.shares.get(report.replica)
        is_new = share is None
        if share is None:
            share = account.shares[report.replica] = _Share(spent=line.acknowledged)
            self._replicas[report.replica].keys.add(line.key)
        if account.window is not None:
            with_recent = is_new and report.joining
            _count_in_window(account.window, share, line, now, with_recent=with_recent)
        elif line.period == account.period:
            _count_in_period(share, line, joining=report.joining)
        else:
            _count_other_period(share, line, now)
        share.period = line.period
        share.spent, share.held, share.free = line.spent, line.held, line.free

    def _grant(self, replica: str, line: Line, now: float, wall: float, learning: float) -> Grant:
        account = self._accounts[line.key]
        left = max(0, line.limit - account.used(now) - account.outstanding())
        if learning > 0:
            return Grant(line.key, 0, left, learning)
        if line.key.meter in CALENDAR and account.ledger is None:
            return Grant(line.key, 0, left, PENDING_RETRY_S, pending=True)
        share = account.shares[replica]
        lease = lease_size(line.limit, left + share.free) - share.free
        units = min(left, max(line.need, min(line.need + line.want, lease)))
        if units < line.least or units <= 0:
            return Grant(line.key, 0, left, self._retry_after_s(line, account, left, now, wall))
        share.free += units
        return Grant(line.key, units, left - units)

    def _retry_after_s(
        self, line: Line, account: _Account, left: int, now: float, wall: float
    ) -> float:
        """Returns the seconds until a retry can succeed."""
        if line.key.meter in CALENDAR:
            return period_left_s(line.key.meter, wall)
        short = max(1, line.least - left)
        idle = sum(share.free for share in account.shares.values())
        if account.window is None or idle >= short:
            return HEARTBEAT_S
        slid = account.window.free_in_s(short, now)
        return RUNNING_RETRY_S if slid is None else slid

    def _expire_silent(self, now: float) -> None:
        """Counts leases of silent replicas as spent; forgets replicas once their window is over."""
        for name, replica in list(self._replicas.items()):
            if replica.alive and replica.seen + TTL_S + GRACE_S < now:
                replica.alive = False
                self._count_as_spent(name, replica)
            if not replica.alive and replica.seen + TTL_S + GRACE_S + WINDOW_S < now:
                self._forget(name, replica)
        if self._unjoined_peers and now >= self._started + WINDOW_S + LEARNING_S:
            self._unjoined_peers.clear()

    def _count_as_spent(self, name: str, replica: _Replica) -> None:
        for key, account, share in self._shares(name, replica):
            if account.window is not None:
                account.window.add(replica.seen + TTL_S, share.outstanding)
            elif key.meter in CALENDAR:
                share.counted += share.outstanding
            share.held = share.free = 0

    def _forget(self, name: str, replica: _Replica) -> None:
        for key, account, share in self._shares(name, replica):
            if key.meter not in CALENDAR or not share.earlier + share.counted:
                del account.shares[name]
        del self._replicas[name]

    def _shares(self, name: str, replica: _Replica) -> list[tuple[LimitKey, _Account, _Share]]:
        accounts = [(key, self._accounts[key]) for key in replica.keys if key in self._accounts]
        return [
            (key, account, account.shares[name])
            for key, account in accounts
            if name in account.shares
        ]

    def _account(self, key: LimitKey, now: float, wall: float) -> _Account:
        period = period_of(key.meter, wall)
        account = self._accounts.get(key)
        if account is None:
            self._make_room(now)
            account = self._accounts[key] = _Account(
                period, SlidingWindow(WINDOW_S) if key.meter in SLIDING else None, latest=period
            )
            if key.meter in CALENDAR:
                self._unread.add(key)
        elif account.period != period:
            self._enter_period(key, account, period)
        self._accounts.move_to_end(key)
        return account

    def _make_room(self, now: float) -> None:
        """Drops the least recently used limits with no units; at twice the bound, any."""
        while len(self._accounts) >= MAX_KEYS:
            key, account = next(iter(self._accounts.items()))
            busy = account.outstanding() or (
                account.window is not None and account.window.used(now)
            )
            if len(self._accounts) < 2 * MAX_KEYS and busy:
                break
            del self._accounts[key]
            self._unread.discard(key)
            for replica in account.shares.keys() & self._replicas.keys():
                self._replicas[replica].keys.discard(key)

    def _enter_period(self, key: LimitKey, account: _Account, period: str) -> None:
        """Enters the next day or month, or an earlier one when the clock was set back.

        A period later than all before starts with nothing spent, because this authority sees it
        from its start. The ledger is still read: an earlier authority whose clock ran ahead may
        have granted in that period. In any other period nothing is granted until the ledger was
        read. Spending of replicas forgotten since counts in the period that ends.
        """
        former, known = account.former
        account.former = account.period, None if account.ledger is None else account.spent()
        if period == former:
            account.ledger = known
        elif period > account.latest:
            account.ledger = {}
        else:
            account.ledger = None
        account.period, account.latest = period, max(period, account.latest)
        self._unread.add(key)
        account.shares = {
            name: share for name, share in account.shares.items() if name in self._replicas
        }
        for share in account.shares.values():
            share.counted = share.earlier = 0

    def _peers(self) -> tuple[str, ...]:
        return tuple(self._replicas)


def _count_in_window(
    window: SlidingWindow, share: _Share, line: Line, now: float, *, with_recent: bool
) -> None:
    """Adds what was spent since the last report; `with_recent`, the replica's whole window."""
    if with_recent:
        for age, units in line.recent:
            window.add(now - age, units)
    else:
        window.add(now, line.spent - max(share.spent, line.acknowledged))


def _count_in_period(share: _Share, line: Line, *, joining: bool) -> None:
    """Takes the replica's sum of the account's period."""
    if line.incarnation > share.incarnation:
        share.earlier, share.counted = share.earlier + share.counted, 0
        share.incarnation = line.incarnation
    # A joining replica may have been counted as dead, with units that it had not spent.
    share.counted = line.spent if joining else max(line.spent, share.counted)
    share.other_period_since = None


def _count_other_period(share: _Share, line: Line, now: float) -> None:
    """Counts spending of another period in the account's once the clocks differ for too long."""
    if share.other_period_since is None:
        share.other_period_since = now
    if share.period == line.period and now - share.other_period_since > SKEW_S:
        share.earlier += max(0, line.spent - share.spent)
