"""What follows a failed attempt: the same target again, the next one, or the failure. Pure.

    failure                                 same target again       then  against the circuit
    too long (ContextLengthExceeded)        no                      next  no
    refused as invalid (InvalidRequest)     no                      fail  no
    credentials, model or route refused     no                      next  yes
    throttled (UpstreamRateLimited)         Retry-After or backoff  next  yes, or rests
    unreachable, 5xx (UpstreamUnavailable)  backoff or Retry-After  next  yes, or rests
    garbage (UpstreamInvalidResponse)       backoff                 next  yes
    silent (UpstreamTimeout)                no                      next  yes, unless cut short
    engine not ready, full (Unavailable)    no                      next  no
    deadline of the request, anything else  no                      fail  no

For a request that is too long, only targets that are known to hold it come next. After a
`Retry-After` the target rests until then, which does not count as a failure.

The same target is asked at most `retry.attempts` times. A wait must end before the request's
deadline, and within `retry.max_backoff_s` while another target could answer instead.

While another target could answer, an attempt may be silent for `HANDOVER_SHARE` of what is left of
the caller's deadline, so that the other one is asked in time; without a deadline, for
`timeouts.handover_s`. An attempt that was cut short like this, or by the caller's deadline, counts
against the circuit only after `silence_counts_s`, so that a hurried caller closes no provider to
others. A stream without content after `timeouts.first_token_handover_s` counts at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from contracts.errors import (
    ContextLengthExceeded,
    DaarionError,
    Unavailable,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from contracts.llm.routing import RetryPolicy, Target, Timeouts

MAX_REST_S = 300.0
"""How long a provider's `Retry-After` can keep new calls away from it at most."""
HANDOVER_SHARE = 0.6
MIN_SILENCE_S = 10.0
_MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Step:
    """What follows; `wait_s` is the pause before the same target is asked again."""

    kind: Literal["again", "next", "caller"]
    wait_s: float = 0.0


def next_step(
    error: DaarionError,
    *,
    tries: int,
    retry: RetryPolicy,
    others: bool,
    remaining_s: float,
    jitter: float,
) -> Step:
    """Returns what follows the failure of the `tries`-th attempt at one target.

    `others` tells whether another target is left, `remaining_s` is what is left of the request's
    deadline, `jitter` is a random number between 0 and 1 that spreads the waits of many callers.
    """
    if remaining_s <= 0 or not isinstance(
        error, UpstreamError | UpstreamTimeout | Unavailable | ContextLengthExceeded
    ):
        return Step("caller")
    if tries < retry.attempts and _may_heal(error):
        wait = _wait_s(error, tries, retry, jitter)
        if wait < remaining_s and (wait <= retry.max_backoff_s or not others):
            return Step("again", wait)
    return Step("next")


def holders(targets: Iterable[Target], refused_by: Target, needed_tokens: int) -> Iterator[Target]:
    """Yields the targets that are known to hold a request of about `needed_tokens`."""
    least = max(needed_tokens, (refused_by.context_tokens or 0) + 1)
    return (target for target in targets if (target.context_tokens or 0) >= least)


def silence_counts_s(timeouts: Timeouts) -> float:
    """Seconds of silence that count against a target although the caller's patience ended first."""
    return max(MIN_SILENCE_S, timeouts.first_token_s / 2)


def blames_target(error: DaarionError, *, cut_short: bool) -> bool:
    """Whether `error` counts against the target's circuit.

    `cut_short` says that the caller's deadline ended the attempt too early to blame the target.
    """
    if isinstance(error, UpstreamTimeout):
        return not cut_short
    if isinstance(error, UpstreamRateLimited):
        return error.retry_after_s is None
    return isinstance(error, UpstreamError)


def rest_s(error: DaarionError) -> float:
    """Seconds for which the provider itself asked not to be called; zero where it did not."""
    if (
        isinstance(error, UpstreamRateLimited | UpstreamUnavailable)
        and error.retry_after_s is not None
    ):
        return min(error.retry_after_s, MAX_REST_S)
    return 0.0


def _may_heal(error: DaarionError) -> bool:
    return isinstance(error, UpstreamError) and not isinstance(
        error, UpstreamAuthFailed | UpstreamMisconfigured
    )


def _wait_s(error: DaarionError, tries: int, retry: RetryPolicy, jitter: float) -> float:
    """`Retry-After` and a little, else between half and the whole of the backoff."""
    backoff = (
        min(retry.backoff_s * 2.0 ** min(tries - 1, _MAX_DOUBLINGS), retry.max_backoff_s)
        * (1 + jitter)
        / 2
    )
    return (
        backoff
        if error.retry_after_s is None
        else error.retry_after_s + min(backoff, 0.1 + 0.1 * error.retry_after_s)
    )
