"""Clocks that run ahead or behind and are set right: no day and no month is granted twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.llm.limits import Estimate, Limit, LimitKey
from services.llm.limits.lease_book import SKEW_S
from services.llm.limits.periods import period_of
from services.llm.limits.protocol import PERIODS
from tests.support.llm.lease_world import World, admitted, only

DAY = 86_400.0
COST = Estimate(1, 100)
METERS = pytest.mark.parametrize("meter", ["usd_per_day", "usd_per_month"])


def money(meter, limit=1_000, **world):
    return World([Limit(LimitKey("agent", "a", meter), limit)], **world)


def spend(world, attempts, replica=0):
    """Calls that cost 100 each; returns how many were admitted."""
    count = 0
    for _ in range(attempts):
        if world.call(world.replicas[replica], COST):
            world.settle(world.replicas[replica], 1)
            count += 1
    return count


@METERS
@pytest.mark.parametrize(
    ("whose", "left"), [("all", 2), ("replica", 2), ("authority", 0)]
)  # to the last, three calls look like later ones
@pytest.mark.parametrize("ledger", ["there", "away"])
def test_a_clock_that_runs_ahead_for_one_call_and_is_set_back_grants_no_budget_twice(
    meter, whose, left, ledger
):
    world = money(meter)
    assert spend(world, 7) == 7
    world.advance(3)
    assert spend(world, 1, replica=1) == 1
    world.advance(3)
    if ledger == "away":
        world.ledger = lambda *_: {}
    first, *others = (replica.replica for replica in world.replicas)
    whom = {"all": ["authority", first, *others], "authority": ["authority"], "replica": [first]}[
        whose
    ]
    for _ in range(3):
        world.ahead = dict.fromkeys(whom, 40 * DAY)
        assert spend(world, 1) == 1
        world.ahead = {}
        world.advance(3)
    assert spend(world, 10) == left
    world.advance(3)
    assert spend(world, 10, replica=1) + spend(world, 10, replica=2) == 0


@METERS
def test_spending_under_a_clock_ahead_counts_when_that_period_comes(meter):
    world = money(meter)
    world.wall += 40 * DAY
    assert spend(world, 6) == 6
    world.wall -= 40 * DAY
    world.advance(3)
    assert spend(world, 20) == 10
    world.advance(3)
    world.wall += 40 * DAY
    assert spend(world, 20) == 4


@METERS
def test_also_where_another_authority_granted_it(meter):
    world = money(meter)
    world.wall += 40 * DAY
    assert spend(world, 6) == 6
    world.wall -= 40 * DAY
    for index in range(3):
        world.crash(index)
    world.restart()
    world.advance(4)
    assert spend(world, 20) == 10
    world.wall += 40 * DAY
    world.advance(1)
    assert spend(world, 20) == 4


def test_a_clock_set_back_over_midnight_continues_the_day_before():
    world = money("usd_per_day")
    midnight = DAY - (world.wall + world.now) % DAY
    world.wall += midnight - 2
    assert spend(world, 8) == 8
    world.advance(4)
    assert spend(world, 5) == 5
    world.wall -= 10
    world.advance(1)
    assert spend(world, 5) == 2
    world.advance(12)
    assert spend(world, 20) == 5


def test_an_unknown_past_is_read_before_anything_is_granted():
    world = money("usd_per_month")
    assert spend(world, 1) == 1
    world.wall -= 40 * DAY
    report = world.replicas[0].report(
        [(world.replicas[0].plan(world.limits, world.now), [100])],
        world.now,
        world.clock(),
        heartbeat=True,
    )
    (grant,) = world.book.exchange(report, world.now, world.clock()).grants.values()
    assert (grant.units, grant.pending) == (0, "ledger")


def test_a_day_that_everyone_forgot_is_read_before_anything_is_granted():
    world = money("usd_per_day")
    assert spend(world, 1) == 1
    world.wall += DAY
    assert spend(world, 6) == 6
    for _ in range(PERIODS + 1):
        world.wall += DAY
        assert spend(world, 1) == 1
    world.wall -= (PERIODS + 1) * DAY
    assert spend(world, 20) == 4


def test_a_grant_of_the_day_that_ends_meanwhile_goes_back():
    world = money("usd_per_day")
    assert spend(world, 1) == 1
    replica = world.replicas[0]
    plan = replica.plan(world.limits, world.now)
    report = replica.report([(plan, [100])], world.now, world.clock(replica), heartbeat=False)
    reply = world.book.exchange(report, world.now, world.clock())
    world.wall += DAY
    assert not replica.take(plan, [100], world.now, world.clock(replica))
    replica.answered(report, reply, world.now)
    assert plan[0].free == 0
    assert spend(world, 20) == 10


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_replica_whose_clock_stays_wrong_does_not_spend_without_end(hours):
    world = money("usd_per_day")
    world.ahead = {world.replicas[0].replica: hours * 3600}
    count = 0
    for _ in range(60):
        count += spend(world, 1)
        world.advance(1)
    assert count <= 10 + SKEW_S + 2


def test_the_minute_does_not_look_at_the_clock():
    world = only("requests_per_minute", 10)
    assert admitted(world, 20) == 10
    for hours in (1_000, -2_000, 1_000):
        world.wall += hours * 3_600
        world.advance(5)
        assert admitted(world, 5) == 0
    world.advance(50)
    assert admitted(world, 20) == 10


step = st.one_of(
    st.tuples(st.just("spend"), st.integers(0, 2), st.integers(1, 12)),
    st.tuples(st.just("clock"), st.sampled_from([-40, -1, 1, 2, 31, 40]), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 5), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["usd_per_day", "usd_per_month"]), st.lists(step, max_size=25))
def test_no_period_is_exceeded_however_the_clock_is_set(meter, steps):
    world = money(meter)
    for what, value, count in steps:
        if what == "spend":
            spend(world, count, replica=value)
        elif what == "clock":
            world.wall += value * DAY
            world.hear()
        elif what == "wait":
            world.advance(value)
        else:
            world.hear()
            world.restart()
    spent = {}
    for call in world.calls:
        period = period_of(meter, call.settled_at)
        spent[period] = spent.get(period, 0) + call.spent.nano_usd
    assert all(units <= 1_000 for units in spent.values())
