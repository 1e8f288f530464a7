"""When a dead process is started again, and when the launcher gives up."""

from hypothesis import given
from hypothesis import strategies as st

from launcher.restarting import Failures


def test_delays_double_up_to_their_bound():
    failures = Failures()
    assert [failures.add(now, 1) for now in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_long_life_starts_over():
    failures = Failures()
    for now in range(5):
        failures.add(now, 1)
    assert failures.add(66, 61) == 0.5


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50))
def test_delays_stay_within_their_bounds(lives):
    failures = Failures()
    assert all(0.5 <= failures.add(0, life) <= 30 for life in lives)


def test_five_failures_within_two_minutes_are_too_many():
    failures = Failures()
    for now in (0, 50, 100, 130):
        failures.add(now, 1)
        failures.succeeded()
        assert not failures.too_many
    failures.add(140, 1)  # the first failure is outside the window
    assert not failures.too_many
    failures.add(169, 1)
    assert failures.too_many


def test_five_failures_without_a_success_are_too_many_at_any_pace():
    failures = Failures()
    for now in range(0, 4000, 1000):
        failures.add(now, 1)
        assert not failures.too_many
    failures.add(4000, 1)
    assert failures.too_many
