import math

from hypothesis import given
from hypothesis import strategies as st

from contracts.llm.listings import EngineLoad
from contracts.llm.ports import Condition
from contracts.llm.routing import Spill, Target, Timeouts
from services.llm.spillover import Spillover, TargetCandidate, order_targets, queue_depth

TIMES = Timeouts(1, 1, 1, 1)


def candidates(count):
    one = st.builds(
        lambda name, callable_now, price: TargetCandidate(
            Target("p", name, TIMES), callable_now, price
        ),
        st.sampled_from("abcdefgh"),
        st.booleans(),
        st.none() | st.floats(0, 100),
    )
    return st.lists(one, min_size=count, max_size=6, unique_by=lambda each: each.target.key)


def names(targets):
    return "".join(target.name for target in targets)


@given(candidates(1), candidates(0), st.booleans())
def test_every_target_is_tried_once(own, spill, busy):
    ordered = order_targets(own, spill, busy=busy)
    assert sorted(set(names(ordered))) == sorted(names(ordered))
    assert set(names(ordered)) == {each.target.name for each in (*own, *spill)}


@given(candidates(1), candidates(0))
def test_calm_calls_take_the_configured_way(own, spill):
    assert order_targets(own, spill, busy=False)[: len(own)] == tuple(each.target for each in own)


@given(candidates(1), candidates(1))
def test_busy_calls_go_to_the_cheapest_that_can_be_called(own, spill):
    ordered = order_targets(own, spill, busy=True)
    ready = [each for each in spill if each.callable_now]
    if not ready:
        assert ordered[0] == own[0].target
        return
    cheapest = min(ready, key=lambda each: math.inf if each.price is None else each.price)
    assert ordered[0] == cheapest.target
    prices = {each.target.key: each.price for each in ready}
    taken = [prices[target.key] for target in ordered[: len(ready)]]
    known = [price for price in taken if price is not None]
    assert known == sorted(known)
    assert taken == [*known, *[None] * (len(taken) - len(known))]


@given(candidates(1), candidates(0), st.booleans())
def test_without_prices_the_configured_order_stays(own, spill, busy):
    spill = [TargetCandidate(each.target, True) for each in spill]
    ordered = order_targets(own, spill, busy=busy)
    first, second = (spill, own) if busy else (own, spill)
    assert names(ordered) == "".join(dict.fromkeys(each.target.name for each in (*first, *second)))


def load(waiting, max_running=4):
    return Condition(
        load=EngineLoad(
            running=0,
            waiting=waiting,
            max_running=max_running,
            finished=0,
            aborted=0,
            generated_tokens=0,
        )
    )


def test_the_queue_depth_is_the_engines_last_report():
    assert queue_depth(load(3)) == 3
    assert queue_depth(Condition("starting")) == math.inf
    assert queue_depth(Condition()) == 0, "of a remote provider nothing is known"


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 10), st.data())
def test_calls_come_back_only_when_the_queue_has_drained(depths, bound, data):
    returns = data.draw(st.integers(0, bound - 1))
    spillover, was = Spillover(), False
    for depth in depths:
        busy = spillover.busy("m", Spill((), bound, returns), depth, callable_now=True)
        if depth >= bound:
            assert busy
        elif depth <= returns:
            assert not busy
        else:
            assert busy == was, "between the marks nothing changes"
        was = busy


def test_models_spill_over_each_by_itself_and_also_when_their_target_cannot_be_called():
    spillover, spill = Spillover(), Spill((), 4, 2)
    assert spillover.busy("a", spill, 9, callable_now=True)
    assert not spillover.busy("b", spill, 3, callable_now=True)
    assert spillover.busy("b", spill, 0, callable_now=False)
    assert not spillover.busy("b", spill, 0, callable_now=True)
