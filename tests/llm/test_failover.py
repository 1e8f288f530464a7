import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import errors
from contracts.errors import DaarionError
from contracts.llm.routing import RetryPolicy, Timeouts
from services.llm.failover import (
    MAX_PAUSE_S,
    blames_target,
    decide_failover,
    pause_s,
    silence_counts_s,
)

RETRY = RetryPolicy(attempts=3, backoff_s=0.5, max_backoff_s=4)


def leaves(root=DaarionError):
    return [root, *(leaf for child in root.__subclasses__() for leaf in leaves(child))]


def after(error, **given_):
    return decide_failover(
        error,
        **{
            "tries": 1,
            "retry": RETRY,
            "others": True,
            "remaining_s": 60.0,
            "jitter": 1.0,
            **given_,
        },
    )


# Of each leaf that an attempt can end in: what follows the first attempt and the last, and whether
# the target is to blame.
TABLE = [
    (errors.InvalidRequest, "raise", "raise", False),
    (errors.ContextLengthExceeded, "next_target", "next_target", False),
    (errors.ContentFiltered, "raise", "raise", False),
    (errors.UpstreamRejected, "raise", "raise", False),
    (errors.UpstreamAuthFailed, "next_target", "next_target", True),
    (errors.UpstreamMisconfigured, "next_target", "next_target", True),
    (errors.UpstreamRateLimited, "retry", "next_target", True),
    (errors.UpstreamUnavailable, "retry", "next_target", True),
    (errors.UpstreamInvalidResponse, "retry", "next_target", True),
    (errors.UpstreamTimeout, "next_target", "next_target", True),
    (errors.EngineUnavailable, "next_target", "next_target", False),
    (errors.Overloaded, "next_target", "next_target", False),
    (errors.DeadlineExceeded, "raise", "raise", False),
    (errors.Internal, "raise", "raise", False),
]


@pytest.mark.parametrize(
    ("leaf", "first", "last", "blamed"), TABLE, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_table(leaf, first, last, blamed):
    error = leaf("x")
    assert after(error).action == first
    assert after(error, tries=RETRY.attempts).action == last
    assert after(error, remaining_s=0).action == "raise", "nobody is asked after the deadline"
    assert blames_target(error, cut_short=False) is blamed


def test_backoffs_grow_and_are_bounded_and_spread():
    waits = [
        after(errors.UpstreamUnavailable("x"), tries=tries, retry=RetryPolicy(10, 0.5, 4)).wait_s
        for tries in range(1, 7)
    ]
    assert waits == [0.5, 1, 2, 4, 4, 4]
    assert after(errors.UpstreamUnavailable("x"), jitter=0).wait_s == 0.25


@pytest.mark.parametrize(
    ("retry_after", "others", "remaining", "action"),
    [
        (3, True, 60, "retry"),
        (30, True, 60, "next_target"),  # somebody else can answer now
        (30, False, 60, "retry"),
        (30, False, 20, "next_target"),  # too late
        (0, False, 20, "retry"),
    ],
)
def test_retry_after_is_honoured_where_it_fits(retry_after, others, remaining, action):
    for leaf in (errors.UpstreamRateLimited, errors.UpstreamUnavailable):
        decision = after(leaf("x", retry_after_s=retry_after), others=others, remaining_s=remaining)
        assert decision.action == action
        assert action == "next_target" or retry_after <= decision.wait_s < remaining


def test_a_target_rests_as_long_as_its_provider_asked():
    throttled = errors.UpstreamRateLimited("x", retry_after_s=7)
    assert (pause_s(throttled), blames_target(throttled, cut_short=False)) == (7, False)
    assert pause_s(errors.UpstreamUnavailable("x", retry_after_s=86_400)) == MAX_PAUSE_S
    assert (
        pause_s(errors.UpstreamRateLimited("x"))
        == pause_s(errors.Overloaded("x", retry_after_s=1))
        == 0
    )


def test_a_callers_short_patience_is_not_the_targets_fault():
    assert not blames_target(errors.UpstreamTimeout("x"), cut_short=True)
    assert blames_target(errors.UpstreamUnavailable("x"), cut_short=True)


def test_silence_is_handed_over_while_the_caller_still_waits():
    timeouts = Timeouts(5, 30, 30, 120, handover_s=20)
    assert (timeouts.whole_s(), timeouts.begin_s()) == (20, 20)
    streams_sooner = Timeouts(5, 30, 30, 120, handover_s=20, first_token_handover_s=12)
    assert (streams_sooner.whole_s(), streams_sooner.begin_s()) == (20, 12)
    assert (streams_sooner.alone().whole_s(), streams_sooner.alone().begin_s()) == (120, 30)
    assert (Timeouts(5, 30, 30, 120).whole_s(), Timeouts(5, 30, 30, 120).begin_s()) == (120, 30)
    assert (silence_counts_s(timeouts), silence_counts_s(Timeouts(1, 1, 1, 1))) == (15, 10)


@given(
    leaf=st.sampled_from(leaves()),
    retry_after=st.none() | st.floats(0, 1e6),
    tries=st.integers(1, 100),
    retry=st.builds(RetryPolicy, st.integers(1, 10), st.floats(0, 60), st.floats(0, 60)),
    others=st.booleans(),
    remaining=st.floats(0, 1e4),
    jitter=st.floats(0, 1),
)
def test_no_retry_outlasts_the_deadline_or_the_attempts(
    leaf, retry_after, tries, retry, others, remaining, jitter
):
    error = leaf("x", retry_after_s=retry_after)
    decision = decide_failover(
        error, tries=tries, retry=retry, others=others, remaining_s=remaining, jitter=jitter
    )
    if decision.action != "retry":
        assert decision.wait_s == 0
        return
    assert tries < retry.attempts
    assert (retry_after or 0) <= decision.wait_s < remaining
    assert math.isfinite(decision.wait_s)
    assert not others or decision.wait_s <= retry.max_backoff_s
    assert not isinstance(error, errors.InvalidRequest | errors.DeadlineExceeded)
