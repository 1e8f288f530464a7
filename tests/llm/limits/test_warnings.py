"""A warning when four fifths of a limit are used: once per subject, meter and period."""

import pytest

from contracts.llm.limits import NANO_PER_USD, Estimate, Limit, LimitKey, LimitWarning
from services.llm.limits.periods import DAY_S
from services.llm.limits.protocol import WINDOW_S
from tests.support.llm.lease_world import CALLS, MONEY, REQUESTS, TOKENS, World

ONE = Estimate(1, 1)


def spend(world, units):
    """Calls of the first replica that spend a request, a token and a billionth of a dollar each."""
    for _ in range(units):
        assert world.call(world.replicas[0], ONE)
        world.settle(world.replicas[0], 1)
    world.hear()


def warned(world):
    return [(warning.key, warning.used) for warning in world.book.take_warnings()]


@pytest.mark.parametrize("key", [REQUESTS, TOKENS, MONEY])
def test_four_fifths_of_a_limit_are_warned_of_once(key):
    world = World([Limit(key, 10)])
    spend(world, 7)
    assert warned(world) == []
    spend(world, 1)
    assert warned(world) == [(key, 8)]
    spend(world, 2)
    world.advance(5)
    assert warned(world) == []


def test_running_calls_are_no_reason_for_a_warning():
    world = World([Limit(CALLS, 2)])
    assert world.call(world.replicas[0], ONE)
    assert world.call(world.replicas[0], ONE)
    world.hear()
    assert warned(world) == []


def test_subjects_and_meters_are_warned_of_apart():
    borys = LimitKey("agent", "b", "tokens_per_minute")
    world = World([Limit(TOKENS, 10), Limit(borys, 5), Limit(MONEY, 100)])
    spend(world, 4)
    assert warned(world) == [(borys, 4)]
    world.limits = [Limit(TOKENS, 10)]
    spend(world, 4)
    assert warned(world) == [(TOKENS, 8)]


def test_a_budget_is_warned_of_again_in_the_next_period():
    world = World([Limit(MONEY, 10)])
    spend(world, 9)
    assert warned(world) == [(MONEY, 8)]
    world.wall += DAY_S
    spend(world, 7)
    assert warned(world) == []
    spend(world, 1)
    assert warned(world) == [(MONEY, 8)]


def test_a_minute_that_stays_nearly_used_up_is_one_warning_until_it_was_quiet_for_a_whole_one():
    world = World([Limit(TOKENS, 10)])
    for _ in range(4 * int(WINDOW_S)):  # nine tokens a minute, for four minutes
        if world.now % 60 < 9:
            spend(world, 1)
        world.advance(1)
    assert len(warned(world)) == 1
    world.advance(2 * WINDOW_S)
    spend(world, 8)
    assert warned(world) == [(TOKENS, 8)]


def test_a_larger_budget_is_warned_of_anew_and_a_smaller_one_is_not():
    world = World([Limit(MONEY, 10)])
    spend(world, 8)
    assert warned(world) == [(MONEY, 8)]
    world.limits = [Limit(MONEY, 9)]
    spend(world, 1)
    assert warned(world) == []
    world.limits = [Limit(MONEY, 20)]
    spend(world, 6)
    assert warned(world) == []
    spend(world, 1)
    assert warned(world) == [(MONEY, 16)]


def test_money_that_only_the_ledger_knows_counts():
    world = World([Limit(MONEY, 10)])
    spend(world, 8)
    world.crash(0)
    world.restart()
    world.advance(70)
    spend(world, 1)
    [(key, used)] = warned(world)  # another authority does not know of the first warning
    assert (key, used) in {(MONEY, 8), (MONEY, 9)}


def test_a_message_says_dollars_and_names_a_budgets_period():
    key = LimitKey("credential", "sofia-bot", "usd_per_day")
    warning = LimitWarning(key, 5 * NANO_PER_USD, 4_200_000_000, "2026-03-14")
    message = warning.message()
    assert message.pop("ts")
    assert message == {
        "event_id": "limit.warning-credential-sofia-bot-usd_per_day-5000000000-2026-03-14",
        "limit": "credential.usd_per_day",
        "subject": "sofia-bot",
        "period": "2026-03-14",
        "amount": 5.0,
        "used": 4.2,
    }
