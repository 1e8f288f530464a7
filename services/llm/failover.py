"""Decides what follows a failed attempt: a retry, the next target, or raising it. Pure.

Broken streams: see `streams.py`.

    failure                                 retry, after            then         circuit
    too long (ContextLengthExceeded)        no                      next target  no
    refused as invalid (InvalidRequest)     no                      raise        no
    credentials, model or route refused     no                      next target  failure
    throttled (UpstreamRateLimited)         Retry-After or backoff  next target  failure, or pause
    unreachable, 5xx (UpstreamUnavailable)  backoff or Retry-After  next target  failure, or pause
    garbage (UpstreamInvalidResponse)       backoff                 next target  failure
    silent (UpstreamTimeout)                no                      next target  failure (*)
    engine not ready, full (Unavailable)    no                      next target  no
    configured to refuse (ModelAsleep)      no                      raise        no
    deadline of the request, anything else  no                      raise        no

    (*) unless cut short, see below

A request that is too long goes only to targets whose context is known to be large enough. After a
`Retry-After` the target is left alone until then, which does not count as a failure.

One target is asked at most `retry.attempts` times. A wait must end before the request's deadline,
and within `retry.max_backoff_s` while another target could answer instead.

While another target could answer, an attempt may be silent for `HANDOVER_SHARE` of the caller's
remaining deadline, which leaves time to ask the other one; without a deadline, for
`timeouts.handover_s`. An attempt that was cut short like this, or by the caller's deadline, counts
against the circuit only after `silence_counts_s`, so that callers with short deadlines do not open
the circuit for everyone. A stream without content after `timeouts.first_token_handover_s` counts at
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from contracts.errors import (
    ContextLengthExceeded,
    DaarionError,
    ModelAsleep,
    Unavailable,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from contracts.llm.routing import RetryPolicy, Target, Timeouts

MAX_PAUSE_S = 300.0
"""The longest pause that a provider's `Retry-After` can ask for."""
HANDOVER_SHARE = 0.6
MIN_SILENCE_S = 10.0
_MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class FailoverDecision:
    """What follows a failed attempt; `wait_s` is the pause before a retry of the same target."""

    action: Literal["retry", "next_target", "raise"]
    wait_s: float = 0.0


def decide_failover(
    error: DaarionError,
    *,
    tries: int,
    retry: RetryPolicy,
    others: bool,
    remaining_s: float,
    jitter: float,
) -> FailoverDecision:
    """Returns what follows the failure of the `tries`-th attempt at one target.

    `others`: another target could be asked. `remaining_s`: what remains of the request's deadline.
    `jitter`: a random number between 0 and 1 that spreads the waits of many callers.
    """
    if (
        remaining_s <= 0
        or isinstance(error, ModelAsleep)
        or not isinstance(
            error, UpstreamError | UpstreamTimeout | Unavailable | ContextLengthExceeded
        )
    ):
        return FailoverDecision("raise")
    if tries < retry.attempts and _is_transient(error):
        wait = _wait_s(error, tries, retry, jitter)
        if wait < remaining_s and (wait <= retry.max_backoff_s or not others):
            return FailoverDecision("retry", wait)
    return FailoverDecision("next_target")


def fitting_targets(
    targets: Iterable[Target], refused_by: Target, needed_tokens: int
) -> Iterator[Target]:
    """Yields the targets whose context is known to hold a request of about `needed_tokens`."""
    least = max(needed_tokens, (refused_by.context_tokens or 0) + 1)
    return (target for target in targets if (target.context_tokens or 0) >= least)


def silence_counts_s(timeouts: Timeouts) -> float:
    """Seconds of silence that count against a target although the caller's deadline was shorter."""
    return max(MIN_SILENCE_S, timeouts.first_token_s / 2)


def blames_target(error: DaarionError, *, cut_short: bool) -> bool:
    """Whether `error` counts against the target's circuit.

    `cut_short`: the caller's deadline ended the attempt too early to blame the target.
    """
    if isinstance(error, UpstreamTimeout):
        return not cut_short
    if isinstance(error, UpstreamRateLimited):
        return error.retry_after_s is None
    return isinstance(error, UpstreamError)


def pause_s(error: DaarionError) -> float:
    """Seconds that the provider asked to be left alone, at most `MAX_PAUSE_S`; else zero."""
    if (
        isinstance(error, UpstreamRateLimited | UpstreamUnavailable)
        and error.retry_after_s is not None
    ):
        return min(error.retry_after_s, MAX_PAUSE_S)
    return 0.0


def _is_transient(error: DaarionError) -> bool:
    return isinstance(error, UpstreamError) and not isinstance(
        error, UpstreamAuthFailed | UpstreamMisconfigured
    )


def _wait_s(error: DaarionError, tries: int, retry: RetryPolicy, jitter: float) -> float:
    """`Retry-After` plus a small spread; without it, half to the whole of the backoff."""
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
