"""When a dead process is started again, and when the launcher gives up."""

from hypothesis import given
from hypothesis import strategies as st

from launcher.backoff import Backoff, FailureWindow


def test_doubles_up_to_its_bound():
    backoff = Backoff()
    assert [backoff.after(1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_long_life_starts_over():
    backoff = Backoff()
    for _ in range(5):
        backoff.after(1)
    assert backoff.after(61) == 0.5


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50))
def test_stays_within_its_bounds(lives):
    backoff = Backoff()
    assert all(0.5 <= backoff.after(life) <= 30 for life in lives)


def test_five_failures_within_two_minutes_are_too_many():
    window = FailureWindow()
    for now in (0, 50, 100, 130):
        window.add(now)
        window.succeeded()
        assert not window.full
    window.add(140)  # the first failure is outside the window
    assert not window.full
    window.add(169)
    assert window.full


def test_five_failures_without_a_success_are_too_many_at_any_pace():
    window = FailureWindow()
    for now in range(0, 4000, 1000):
        window.add(now)
        assert not window.full
    window.add(4000)
    assert window.full
