"""Replicas and an authority in one process, with lost messages, differing clocks and a true record
of all calls.
"""

from dataclasses import dataclass, field

from contracts.llm.limits import Estimate, Limit, LimitKey, Spent
from services.llm.limits.balance import amount
from services.llm.limits.balances import Balances
from services.llm.limits.lease_book import LEARNING_S, LeaseBook
from services.llm.limits.periods import period_of
from services.llm.limits.protocol import HEARTBEAT_S, TTL_S, WINDOW_S

REQUESTS, TOKENS, CALLS, MONEY = (
    LimitKey("agent", "a", meter)
    for meter in ("requests_per_minute", "tokens_per_minute", "concurrent_calls", "usd_per_day")
)
WALL = 1_790_000_000.0 + 6 * 3600


@dataclass
class Call:
    """One admitted call; `spent` is None while it runs.

    It has lapsed when its replica was taken for dead meanwhile.
    """

    replica: str
    at: float
    estimate: Estimate
    plan: tuple
    amounts: list
    spent: Spent | None = None
    lapsed: bool = False
    settled_at: float = 0.0  # by the clock of its replica


@dataclass
class World:
    """Some replicas, one authority, and a true record of all calls."""

    limits: list
    now: float = 1_000.0
    restarts: int = 0
    births: int = 0
    replicas: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    silent: set = field(default_factory=set)
    reached: dict = field(default_factory=dict)
    wall: float = WALL  # what clocks show at the moment 0
    ahead: dict = field(default_factory=dict)  # by whose clock: how much it differs from the others
    booted: dict = field(default_factory=dict)  # by replica: what its monotonic clock shows more

    def __post_init__(self):
        self.book = LeaseBook("0", self.now - LEARNING_S)
        self.replicas = [self.born() for _ in range(3)]

    def born(self):
        name = f"r{self.births + 1}"
        self.booted[name] = self.births * 200.3 * (-1) ** self.births
        self.births += 1
        return Balances(name)

    def monotonic(self, replica):
        return self.now + self.booted[replica.replica]

    def clock(self, replica=None):
        """What the clock of a replica shows, or the authority's."""
        return (
            self.wall
            + self.now
            + self.ahead.get("authority" if replica is None else replica.replica, 0.0)
        )

    def exchange(self, replica, waiting=(), *, heartbeat=False, lost="no"):
        for _ in range(2):
            report = replica.report(
                waiting, self.monotonic(replica), self.clock(replica), heartbeat=heartbeat
            )
            if lost == "request" or replica.replica in self.silent:
                return
            reply = self.book.exchange(report, self.now, self.clock())
            for key in self.book.unread():
                period = period_of(key.meter, self.clock())
                self.book.load(key, period, self.ledger(key.meter, period))
            if lost == "reply":
                return
            replica.answered(report, reply, self.monotonic(replica))
            if reply.known:
                self.lapse()
                self.reached[replica.replica] = self.now
                return

    def ledger(self, meter, period):
        spent = {}
        for call in self.calls:
            if call.spent is not None and period_of(meter, call.settled_at) == period:
                spent[call.replica] = spent.get(call.replica, 0) + call.spent.nano_usd
        return spent

    def call(self, replica, estimate, lost="no"):
        now = self.monotonic(replica)
        plan = replica.plan(self.limits, now)
        amounts = [amount(balance, estimate) for balance in plan]
        for _ in range(3):
            if replica.take(plan, amounts, now, self.clock(replica)):
                self.calls.append(Call(replica.replica, self.now, estimate, plan, amounts))
                return True
            self.exchange(replica, [(plan, amounts)], lost=lost)
        return False

    def settle(self, replica, share):
        call = next(
            (call for call in self.calls if call.replica == replica.replica and call.spent is None),
            None,
        )
        if call is not None:
            call.spent = Spent(
                tokens=round(call.estimate.tokens * share),
                nano_usd=round(call.estimate.nano_usd * share),
            )
            call.settled_at = self.clock(replica)
            now = self.monotonic(replica)
            replica.settle(
                call.plan,
                call.amounts,
                call.spent,
                taken_at=now - self.now + call.at,
                now=now,
                wall=call.settled_at,
            )

    def crash(self, index):
        self.replicas[index] = self.born()

    def hear(self):
        """A heartbeat of every replica: nothing can be promised of what only the dying one knew."""
        for replica in self.replicas:
            self.exchange(replica, heartbeat=True)

    def witnessed(self, *, without=None):
        """Whether the replicas that report know of all others that spent something."""
        heard = [
            replica
            for replica in self.replicas
            if replica.replica not in self.silent and replica is not without
        ]
        known = {peer for replica in heard for peer in replica.peers} | {
            replica.replica for replica in heard
        }
        return {
            call.replica
            for call in self.calls
            if call.at > self.now - WINDOW_S - TTL_S or call.spent is None
        } <= known

    def advance(self, seconds):
        """Lets time pass; every replica reports once a second."""
        while seconds > 0:
            self.now += min(seconds, HEARTBEAT_S)
            if seconds >= HEARTBEAT_S:
                self.hear()
            seconds -= HEARTBEAT_S

    def restart(self):
        self.restarts += 1
        self.book = LeaseBook(str(self.restarts), self.now)

    def lapse(self):
        """Marks calls as lapsed whose replica could not report for longer than its grants live."""
        for call in self.calls:
            call.lapsed = call.lapsed or self.reached.get(call.replica, 0) <= self.now - TTL_S

    def check(self):
        in_window = [call for call in self.calls if call.at > self.now - WINDOW_S]
        amounts = dict(self.limits)
        assert len(in_window) <= amounts[REQUESTS]
        assert (
            sum((call.spent or Spent(tokens=call.estimate.tokens)).tokens for call in in_window)
            <= amounts[TOKENS]
        )
        self.lapse()
        assert sum(call.spent is None and not call.lapsed for call in self.calls) <= amounts[CALLS]
        # What a replica that is cut off still reserves is unknown to an authority that begins
        # meanwhile.
        counted = [call for call in self.calls if not (call.lapsed and self.restarts)]
        living = {replica.replica for replica in self.replicas}
        running = sum(
            call.estimate.nano_usd
            for call in counted
            if call.spent is None and call.replica in living
        )
        assert (
            running + sum(call.spent.nano_usd for call in counted if call.spent is not None)
            <= amounts[MONEY]
        )


def only(meter, limit, **world):
    """A world with one limit that matters."""
    sizes = dict.fromkeys((REQUESTS, TOKENS, CALLS, MONEY), 10**12) | {
        LimitKey("agent", "a", meter): limit
    }
    return World([Limit(key, size) for key, size in sizes.items()], **world)


ONE = Estimate(1, 1)


def admitted(world, attempts, replica=0, estimate=ONE):
    return sum(world.call(world.replicas[replica], estimate) for _ in range(attempts))
