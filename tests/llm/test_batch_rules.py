"""When a failed request of a batch is retried."""

import pytest

from contracts.errors import (
    CircuitOpen,
    ContextLengthExceeded,
    EngineUnavailable,
    Internal,
    LimitsUnavailable,
    OverLimit,
    Overloaded,
    RateLimited,
    UnknownModel,
    UpstreamAuthFailed,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from contracts.llm.batches import Delay
from services.llm.batches import WorkerSettings, delay_after

SETTINGS = WorkerSettings(max_failures=3, backoff_s=5, backoff_max_s=100)


@pytest.mark.parametrize("error", [RateLimited, LimitsUnavailable, Overloaded])
@pytest.mark.parametrize("failures", [0, 99])
def test_refusals_by_limits_and_queues_pause_the_batch_and_count_no_failure(error, failures):
    assert delay_after(error("x", retry_after_s=33), failures, SETTINGS) == Delay(
        33, pause_batch=True
    )
    assert delay_after(error("x"), failures, SETTINGS) == Delay(5, pause_batch=True)
    assert delay_after(error("x", retry_after_s=9_999), failures, SETTINGS) == Delay(
        100, pause_batch=True
    )


@pytest.mark.parametrize(
    ("error", "failures", "seconds"),
    [
        (UpstreamUnavailable("x"), 0, 5),
        (UpstreamUnavailable("x"), 1, 10),
        (UpstreamTimeout("x", retry_after_s=60), 0, 60),
        (UpstreamRateLimited("x"), 0, 30),
        (UpstreamRateLimited("x"), 1, 60),
        (UpstreamRateLimited("x", retry_after_s=5_000), 1, 100),
    ],
)
def test_transient_failures_are_counted_and_retried_after_growing_pauses(error, failures, seconds):
    assert delay_after(error, failures, SETTINGS) == Delay(seconds, failed=True)
    assert delay_after(error, 2, SETTINGS) is None


@pytest.mark.parametrize(
    "error", [ContextLengthExceeded, UnknownModel, UpstreamAuthFailed, Internal, OverLimit]
)
def test_a_permanent_failure_is_the_result(error):
    assert delay_after(error("x"), 0, SETTINGS) is None


@pytest.mark.parametrize("error", [CircuitOpen, EngineUnavailable])
def test_an_unavailable_model_delays_its_requests_by_growing_pauses_up_to_a_bound(error):
    assert delay_after(error("x"), 2, SETTINGS) == Delay(5, stalled=True)
    assert delay_after(error("x", retry_after_s=33), 2, SETTINGS, stalled_s=12) == Delay(
        33, stalled=True
    )
    assert delay_after(error("x", retry_after_s=1), 2, SETTINGS, stalled_s=40) == Delay(
        40, stalled=True
    )
    assert delay_after(error("x"), 2, SETTINGS, stalled_s=3_599) == Delay(100, stalled=True)
    assert delay_after(error("x"), 0, SETTINGS, stalled_s=3_600) is None
