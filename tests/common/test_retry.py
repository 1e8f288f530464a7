import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.retry import backoff_s, retry
from contracts.errors import DatabaseUnavailable, Internal, InvalidRequest, is_retryable
from tests.support.virtual_time import run_in_virtual_time


class Calls:
    """Fails or answers in this order, the last one for ever; notes when it was called."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.at = []

    async def __call__(self):
        self.at.append(asyncio.get_running_loop().time())
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def pauses(self):
        return [after - before for before, after in zip(self.at, self.at[1:], strict=False)]


@dataclass(frozen=True)
class Answer:
    ok: bool
    retry_after_s: float | None = None


def away(retry_after_s=None):
    return DatabaseUnavailable("away", retry_after_s=retry_after_s)


def test_a_failure_that_passes_is_tried_again_after_growing_pauses():
    calls = Calls(*[away()] * 6, "done")
    assert run_in_virtual_time(retry(calls, is_retryable)) == "done"
    wholes = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    for pause, whole in zip(calls.pauses(), wholes, strict=True):
        assert whole / 2 - 1e-9 <= pause <= whole + 1e-9


@pytest.mark.parametrize("error", [Internal("defect"), ValueError("defect")])
def test_any_other_failure_is_raised_at_once(error):
    calls = Calls(away(), error)
    with pytest.raises(type(error)) as raised:
        run_in_virtual_time(retry(calls, is_retryable))
    assert (raised.value, len(calls.at)) == (error, 2)


@given(within_s=st.floats(0, 100), first_s=st.floats(0.01, 5), longest_s=st.floats(0.01, 20))
def test_no_attempt_begins_after_the_deadline(within_s, first_s, longest_s):
    calls = Calls(away())
    with pytest.raises(DatabaseUnavailable):
        run_in_virtual_time(
            retry(calls, is_retryable, within_s=within_s, first_s=first_s, longest_s=longest_s)
        )
    assert calls.at[0] == 0
    assert all(at < within_s for at in calls.at[1:])
    assert max(calls.pauses(), default=0) <= longest_s + 1e-6


@pytest.mark.parametrize(("asked_s", "paused_s"), [(1.5, 1.5), (3_600, 2.0)])
def test_the_wish_of_a_server_is_met_within_the_longest_pause(asked_s, paused_s):
    failed, refused = Calls(away(asked_s), "done"), Calls(Answer(False, asked_s), Answer(True))
    run_in_virtual_time(retry(failed, is_retryable))
    run_in_virtual_time(retry(refused, repeat=lambda answer: not answer.ok))
    assert failed.pauses() == refused.pauses() == [pytest.approx(paused_s)]


def test_the_last_result_is_returned_when_the_time_is_up():
    calls = Calls(Answer(False))
    last = run_in_virtual_time(retry(calls, repeat=lambda answer: not answer.ok, within_s=1))
    assert last == Answer(False)
    assert len(calls.at) > 2


@pytest.mark.parametrize("on", [lambda _: True, is_retryable])
def test_a_cancellation_is_never_a_failure_to_try_again(on):
    async def work():
        began, calls = asyncio.Event(), []

        async def hang():
            calls.append(1)
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(retry(hang, on))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(calls)

    assert run_in_virtual_time(work()) == 1


@given(failures=st.integers(1, 10**6), first_s=st.floats(0, 1e3), longest_s=st.floats(0, 1e4))
def test_a_pause_is_half_to_the_whole_of_what_doubles_up_to_the_longest(
    failures, first_s, longest_s
):
    whole = min(first_s * 2.0 ** min(failures - 1, 32), longest_s)
    assert whole / 2 <= backoff_s(failures, first_s, longest_s) <= whole


def test_what_a_retry_can_help():
    assert is_retryable(away())
    assert not is_retryable(InvalidRequest("no"))
    assert not is_retryable(TimeoutError())
