"""Replicas and the authority against their one promise: whatever crashes or gets lost, no limit is exceeded."""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.llm.limits import CALENDAR, Estimate, Limit, LimitKey, Spent
from services.llm.limits import balances
from services.llm.limits import lease_book as leases
from services.llm.limits.balances import Balances, amount
from services.llm.limits.lease_book import LEARNING_S, LeaseBook
from services.llm.limits.protocol import (
    GRACE_S,
    HEARTBEAT_S,
    TTL_S,
    WINDOW_S,
    lease_size,
    period_of,
)

REQUESTS, TOKENS, CALLS, MONEY = (
    LimitKey("agent", "a", meter)
    for meter in ("requests_per_minute", "tokens_per_minute", "concurrent_calls", "usd_per_day")
)
WALL = 1_790_000_000.0 + 6 * 3600


@dataclass
class Call:
    """One admitted call; `spent` is None while it runs. It has lapsed when its replica was taken for dead meanwhile."""

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
    """Some replicas, one authority, and what really happened."""

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

    def __post_init__(self):
        self.book = LeaseBook("0", self.now - LEARNING_S)
        self.replicas = [self.born() for _ in range(3)]

    def born(self):
        self.births += 1
        return Balances(f"r{self.births}")

    def clock(self, replica=None):
        """What the clock of a replica shows, or the authority's."""
        return (
            self.wall
            + self.now
            + self.ahead.get("authority" if replica is None else replica.replica, 0.0)
        )

    def exchange(self, replica, waiting=(), *, beat=False, lost="no"):
        for _ in range(2):
            report = replica.report(waiting, self.now, self.clock(replica), beat=beat)
            if lost == "request" or replica.replica in self.silent:
                return
            reply = self.book.exchange(report, self.now, self.clock())
            for key in self.book.unread():
                period = period_of(key.meter, self.clock())
                self.book.load(key, period, self.ledger(key.meter, period))
            if lost == "reply":
                return
            replica.answered(report, reply, self.now, self.now)
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
        plan = replica.plan(self.limits, self.now)
        amounts = [amount(balance, estimate) for balance in plan]
        for _ in range(3):
            if replica.take(plan, amounts, self.now, self.clock(replica)):
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
            replica.settle(call.plan, call.amounts, call.spent, self.now, call.settled_at)

    def crash(self, index):
        self.replicas[index] = self.born()

    def hear(self):
        """A beat of every replica: what only the dying one knew is beyond what can be promised."""
        for replica in self.replicas:
            self.exchange(replica, beat=True)

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
        """Who cannot report for longer than its grants live is taken for dead, and the slots of its calls are free again."""
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
        # What a replica that is cut off still reserves is unknown to an authority that begins meanwhile.
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


LOST = st.sampled_from(["no", "no", "no", "request", "reply"])
WHAT = st.sampled_from(
    ["call"] * 8
    + ["settle"] * 4
    + ["wait"] * 3
    + ["long"] * 2
    + ["crash", "restart", "silent", "heard"]
)
step = st.tuples(WHAT, st.integers(0, 2), st.integers(0, 20), LOST)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 120), st.integers(1, 6), st.integers(1, 400)),
    st.lists(step, min_size=20, max_size=80),
)
def test_no_limit_is_ever_exceeded_whatever_crashes_or_gets_lost(sizes, steps):
    world = World(
        [
            Limit(key, size)
            for key, size in zip((REQUESTS, TOKENS, CALLS, MONEY), sizes, strict=True)
        ]
    )
    for what, index, value, lost in steps:
        replica = world.replicas[index]
        if what == "call":
            world.call(replica, Estimate(value, value * 3), lost)
        elif what == "settle":
            world.settle(replica, value / 20)
        elif what == "wait":
            world.advance(value / 8)
        elif what == "long":
            world.advance(value * 1.7)
        elif what in {"crash", "restart"}:
            world.hear()
            if what == "restart" and world.witnessed():
                world.restart()
            elif what == "crash" and world.witnessed(without=replica):
                world.crash(index)
        elif what == "silent":
            world.silent.add(replica.replica)
        else:
            world.silent.clear()
        world.check()


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_lease_is_never_more_than_is_left_and_never_nothing_while_something_is(limit, left):
    size = lease_size(limit, left)
    assert (size == 0) == (left == 0)
    assert size <= left
    assert size <= -(-limit // 60)


def only(meter, limit, **world):
    """A world with one limit that matters."""
    sizes = dict.fromkeys((REQUESTS, TOKENS, CALLS, MONEY), 10**12) | {
        LimitKey("agent", "a", meter): limit
    }
    return World([Limit(key, size) for key, size in sizes.items()], **world)


ONE = Estimate(1, 1)


def admitted(world, attempts, replica=0, estimate=ONE):
    return sum(world.call(world.replicas[replica], estimate) for _ in range(attempts))


def test_replicas_share_the_whole_limit_and_not_one_more():
    world = only("requests_per_minute", 100)
    assert sum(admitted(world, 1, replica=index % 3) for index in range(150)) in range(95, 101)


def test_what_one_replica_does_not_use_another_one_gets_a_moment_later():
    world = only("requests_per_minute", 100)
    admitted(world, 3, replica=1)
    for _ in range(3):
        world.now += 1
        for replica in world.replicas:
            world.exchange(replica, beat=True)
    assert admitted(world, 150) == 97


def test_units_come_back_after_a_minute_and_the_refusal_says_when():
    world = only("requests_per_minute", 3)
    assert admitted(world, 5) == 3
    (balance,) = [b for b in world.replicas[0].plan(world.limits, world.now) if b.key == REQUESTS]
    assert 59 < balance.retry_at - world.now < 61
    world.now = balance.retry_at - 1
    assert admitted(world, 5) == 0
    world.now = balance.retry_at + 0.2
    assert admitted(world, 5) == 3


def test_reserved_tokens_count_until_they_are_settled_and_what_was_not_spent_comes_back():
    world = only("tokens_per_minute", 100)
    assert admitted(world, 2, estimate=Estimate(60)) == 1
    world.settle(world.replicas[0], 0.5)
    assert admitted(world, 2, estimate=Estimate(60)) == 1
    assert admitted(world, 1, estimate=Estimate(11)) == 0
    assert admitted(world, 1, estimate=Estimate(10)) == 1


def test_a_slot_is_free_when_its_call_has_ended_and_when_its_replica_is_dead():
    world = only("concurrent_calls", 2)
    assert admitted(world, 3) == 2
    world.settle(world.replicas[0], 1)
    assert admitted(world, 3) == 1
    world.crash(0)
    world.now += TTL_S + GRACE_S - 0.1
    assert admitted(world, 3, replica=1) == 0
    world.now += 0.2
    assert admitted(world, 3, replica=1) == 2


def test_a_dead_replicas_lease_counts_as_spent():
    world = only("requests_per_minute", 1)
    world.exchange(world.replicas[0])
    plan = world.replicas[0].plan(world.limits, world.now)
    world.exchange(world.replicas[0], [(plan, [1, 1, 1, 1])])
    world.crash(0)
    world.now += 30
    assert admitted(world, 1, replica=1) == 0
    world.now += 34
    assert admitted(world, 1, replica=1) == 1


def test_money_counts_for_a_calendar_day():
    world = only("usd_per_day", 1_000)
    assert admitted(world, 12, estimate=Estimate(1, 100)) == 10
    for _ in range(10):
        world.settle(world.replicas[0], 1)
    world.now += 3_600
    assert admitted(world, 2, estimate=Estimate(1, 100)) == 0
    world.calls.clear()
    world.now += 86_400
    assert admitted(world, 12, estimate=Estimate(1, 100)) == 10


@pytest.mark.parametrize("key", [REQUESTS, TOKENS, CALLS, MONEY], ids=lambda key: key.meter)
def test_a_restarted_authority_learns_before_it_grants(key):
    world = only(key.meter, 10)
    assert admitted(world, 9) == 9
    world.restart()
    for _ in range(4):
        assert admitted(world, 5) <= 1
        world.check()
        world.now += 1
    assert sum(admitted(world, 5, replica=index) for index in range(3)) <= 1
    world.check()


def test_after_a_double_failure_nothing_is_granted_until_the_unknown_is_over():
    world = only("requests_per_minute", 10)
    for replica in world.replicas:
        world.exchange(replica, beat=True)
    assert admitted(world, 10) == 10
    for replica in world.replicas:
        world.exchange(replica, beat=True)
    world.crash(0)
    world.restart()
    for _ in range(60):
        world.now += 1
        assert admitted(world, 1, replica=1) == 0
    world.now += LEARNING_S + 1
    assert admitted(world, 20, replica=1) == 10


def test_a_replica_that_was_taken_for_dead_is_not_counted_twice():
    world = only("requests_per_minute", 100)
    assert admitted(world, 40) == 40
    world.exchange(world.replicas[0], beat=True)
    world.now += 10
    world.exchange(world.replicas[1], beat=True)
    assert admitted(world, 100) >= 40
    world.check()


def test_steady_demand_gets_nearly_the_whole_limit_minute_after_minute():
    world = only("requests_per_minute", 600)
    until = world.now + 300
    while world.now < until:
        admitted(world, 1)
        world.now += 0.05
    assert 590 <= sum(call.at > world.now - WINDOW_S for call in world.calls) <= 600


def test_periods_are_utc_days_and_months():
    assert period_of("usd_per_day", 1_772_323_199.0) == "2026-02-28"
    assert period_of("usd_per_month", 1_772_323_200.0) == "2026-03"
    assert all(
        not period_of(meter, 0.0)
        for meter in ("requests_per_minute", "concurrent_calls")
        if meter not in CALENDAR
    )


def test_a_replica_that_forgets_unused_balances_counts_each_unit_once(monkeypatch):
    monkeypatch.setattr(balances, "MAX_BALANCES", 2)
    world = World([])
    keys = [LimitKey("agent", name, "requests_per_minute") for name in "abcdef"]
    for _ in range(3):
        for key in keys:
            world.limits = [Limit(key, 10)]
            assert admitted(world, 4) == 4
            world.advance(3)
        assert all(9 >= world.book.standing(key, 10, world.now, WALL).used >= 4 for key in keys)
        world.advance(50)
    assert world.replicas[0].forgotten > 5


def test_money_of_many_callers_is_kept_in_bounds_and_still_counted(monkeypatch):
    monkeypatch.setattr(balances, "MAX_BALANCES", 5)
    world = World([])
    world.ledger = lambda *_: {}  # what is reported is all that is known
    keys = [LimitKey("agent", str(number), "usd_per_day") for number in range(40)]
    for _ in range(3):
        for key in keys:
            world.limits = [Limit(key, 1_000)]
            assert admitted(world, 1, estimate=Estimate(1, 100)) == 1
            world.settle(world.replicas[0], 1)
            world.advance(4)
        assert len(world.replicas[0]._balances) <= 2 * 5
    world.advance(4)
    assert {world.book.standing(key, 1_000, world.now, WALL + world.now).used for key in keys} == {
        300
    }
    world.advance(86_400 / 100)  # nobody spends any more: a replica has nothing more to tell
    assert {world.book.standing(key, 1_000, world.now, WALL + world.now).used for key in keys} == {
        300
    }


def test_what_dead_replicas_spent_counts_to_the_end_of_the_day_and_their_shares_are_gone_then():
    world = only("usd_per_day", 1_000)
    for _ in range(5):
        assert admitted(world, 1, estimate=Estimate(1, 100)) == 1
        world.settle(world.replicas[0], 1)
        world.advance(3)  # what is not needed goes back
        world.crash(0)
        world.advance(WINDOW_S + TTL_S + GRACE_S + 2)
    assert world.book.standing(MONEY, 1_000, world.now, WALL + world.now).used == 500
    world.calls.clear()
    world.now += 86_400
    world.hear()
    assert admitted(world, 12, estimate=Estimate(1, 100)) == 10
    assert set(world.book._accounts[MONEY].shares) <= {
        replica.replica for replica in world.replicas
    }


def test_an_authority_that_forgets_limits_forgets_who_had_them(monkeypatch):
    monkeypatch.setattr(leases, "MAX_KEYS", 5)
    world = World([])
    world.ledger = lambda *_: {}
    for number in range(60):
        world.limits = [Limit(LimitKey("agent", str(number), "usd_per_day"), 1_000)]
        assert admitted(world, 1, estimate=Estimate(1, 100)) == 1
        world.settle(world.replicas[0], 1)
        world.advance(4)
    assert len(world.book._accounts) <= 10
    assert all(len(replica.keys) <= 10 for replica in world.book._replicas.values())


def test_who_cannot_report_spends_nothing_when_its_time_is_over():
    world = only("requests_per_minute", 1_000)
    assert admitted(world, 20) == 20
    silent = world.replicas[0]
    assert (
        sum(
            balance.free
            for balance in silent.plan(world.limits, world.now)
            if balance.key == REQUESTS
        )
        > 0
    )
    world.silent.add(silent.replica)
    world.now += TTL_S + 0.01
    assert admitted(world, 3) == 0


def test_a_report_whose_answer_was_lost_is_counted_once():
    world = only("requests_per_minute", 1_000)
    assert admitted(world, 20) == 20
    for lost in ("reply", "request", "reply", "no"):
        world.exchange(world.replicas[0], beat=True, lost=lost)
    assert world.book.standing(REQUESTS, 1_000, world.now, WALL).used == 20
