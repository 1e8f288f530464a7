"""Replicas and the authority: whatever crashes or gets lost, no limit is exceeded."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.llm.limits import CALENDAR, NOTHING, Estimate, Limit, LimitKey
from services.llm.limits import balances
from services.llm.limits import lease_book as leases
from services.llm.limits.lease_book import LEARNING_S
from services.llm.limits.periods import period_of
from services.llm.limits.protocol import GRACE_S, TTL_S, WINDOW_S, lease_size
from tests.support.llm.lease_world import (
    CALLS,
    MONEY,
    REQUESTS,
    TOKENS,
    WALL,
    World,
    admitted,
    only,
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


def test_replicas_share_the_whole_limit_and_not_one_more():
    world = only("requests_per_minute", 100)
    assert sum(admitted(world, 1, replica=index % 3) for index in range(150)) in range(95, 101)


def test_units_that_one_replica_does_not_use_go_to_another_within_seconds():
    world = only("requests_per_minute", 100)
    admitted(world, 3, replica=1)
    for _ in range(3):
        world.now += 1
        for replica in world.replicas:
            world.exchange(replica, heartbeat=True)
    assert admitted(world, 150) == 97


def test_units_return_after_a_minute_and_the_refusal_says_when():
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
        world.exchange(replica, heartbeat=True)
    assert admitted(world, 10) == 10
    for replica in world.replicas:
        world.exchange(replica, heartbeat=True)
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
    world.exchange(world.replicas[0], heartbeat=True)
    world.now += 10
    world.exchange(world.replicas[1], heartbeat=True)
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
    assert world.replicas[0].drops > 5


def test_a_replica_that_forgets_a_balance_within_half_a_second_counts_each_unit_once(monkeypatch):
    monkeypatch.setattr(balances, "MAX_BALANCES", 1)
    world = World([])
    keys = [LimitKey("agent", name, "requests_per_minute") for name in "abc"]
    for _ in range(2):
        for key in keys:
            world.limits = [Limit(key, 10)]
            assert admitted(world, 4) == 4
            for _ in range(3):
                world.hear()
    assert {world.book.standing(key, 10, world.now, WALL).used for key in keys} == {8}


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
    world.advance(86_400 / 100)  # nothing is spent any more, so replicas report nothing
    assert {world.book.standing(key, 1_000, world.now, WALL + world.now).used for key in keys} == {
        300
    }


def test_spending_of_dead_replicas_counts_until_the_day_ends_and_then_their_shares_are_dropped():
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


def test_a_replica_that_cannot_report_spends_nothing_after_its_lease():
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


@pytest.mark.parametrize(
    "messages", [("reply", "request", "reply", "no"), ("request", "no"), ("request", "reply")]
)
def test_a_report_that_was_lost_or_whose_answer_was_is_counted_once(messages):
    world = only("requests_per_minute", 1_000)
    assert admitted(world, 20) == 20
    for lost in messages:
        world.exchange(world.replicas[0], heartbeat=True, lost=lost)
    assert world.book.standing(REQUESTS, 1_000, world.now, WALL).used == 20


@pytest.mark.parametrize("key", [REQUESTS, TOKENS, MONEY], ids=lambda key: key.meter)
def test_a_silent_replicas_lease_counts_as_spent_until_it_comes_back(key):
    world = only(key.meter, 1_000)
    assert admitted(world, 20) == 20
    for _ in range(20):
        world.settle(world.replicas[0], 1)
    leased = world.book.standing(key, 1_000, world.now, WALL + world.now)
    assert leased.reserved > 0
    world.silent.add(world.replicas[0].replica)
    world.advance(10)
    silent = world.book.standing(key, 1_000, world.now, WALL + world.now)
    assert (silent.used, silent.reserved) == (leased.used + leased.reserved, 0)
    world.silent.clear()
    world.advance(3)
    back = world.book.standing(key, 1_000, world.now, WALL + world.now)
    assert (back.used, back.reserved) == (20, 0)


def test_a_request_that_no_provider_saw_leaves_the_others_where_they_were():
    world = only("requests_per_minute", 1_000)
    (replica, *_) = world.replicas
    assert admitted(world, 1) == 1
    world.now += 0.9
    assert admitted(world, 1) == 1
    first = world.calls.pop(0)
    replica.settle(
        first.plan, first.amounts, NOTHING, taken_at=first.at, now=world.now, wall=world.clock()
    )
    world.restart()
    world.advance(4)
    assert world.book.standing(REQUESTS, 1_000, world.now, WALL).used == 1
    world.now = world.calls[0].at + WINDOW_S - 0.01
    assert world.book.standing(REQUESTS, 1_000, world.now, WALL).used == 1
