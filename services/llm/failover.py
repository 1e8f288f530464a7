"""What follows a failed attempt: the same target again, the next one, or the caller. One pure function, one table.

| Failure | The same target again | Then | Against the circuit |
|---|---|---|---|
| too long (`ContextLengthExceeded`) | no | the next target that is known to hold it | no: the provider works |
| refused as invalid, filtered (`InvalidRequest`) | no: the same request stays wrong | the caller | no: the provider works |
| credentials, model or route refused (`UpstreamAuthFailed`, `UpstreamMisconfigured`) | no | the next target | yes |
| throttled (`UpstreamRateLimited`) | after `Retry-After`, else a backoff | the next target | yes; after a `Retry-After` it rests instead |
| unreachable, reset, 5xx (`UpstreamUnavailable`) | after a backoff, or `Retry-After` | the next target | yes; `Retry-After` as above |
| cut off, garbage (`UpstreamInvalidResponse`) | after a backoff | the next target | yes |
| silent (`UpstreamTimeout`) | no: one timeout is enough | the next target | yes, unless the caller's patience was the shorter one |
| the local engine starting, gone or full (`Unavailable`) | no | the next target | no: the engine tells by itself |
| the request's own deadline (`DeadlineExceeded`), anything else | no | the caller | no |

The same target is asked at most `retry.attempts` times. A wait must end before the request's deadline, and within
`retry.max_backoff_s` while another target could answer instead. Without a next target the failure is the caller's.

While another target could answer, silence is borne for `HANDOVER_SHARE` of what is left of a deadline that the caller gave, so that
the other one is asked in time; where the caller gave none, for `timeouts.handover_s`. An attempt that was cut short like this, or by
the caller's deadline, counts against the circuit only after `silence_counts_s`: a caller in a hurry closes no provider to others.
A stream without a first content after `timeouts.first_token_handover_s` is silent by the target's own measure: that counts at once.
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
    """What follows: `wait_s` seconds before the same target is asked again, else nothing to wait for."""

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

    `others` tells whether another target is left, `remaining_s` is what is left of the request's deadline, `jitter` is a
    random number between 0 and 1 that spreads the waits of many callers.
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
    """Yields the targets that are known to hold a request of about `needed_tokens`, which was too long for another one."""
    least = max(needed_tokens, (refused_by.context_tokens or 0) + 1)
    return (target for target in targets if (target.context_tokens or 0) >= least)


def silence_counts_s(timeouts: Timeouts) -> float:
    """Seconds of silence that count against a target although the caller's patience ended first."""
    return max(MIN_SILENCE_S, timeouts.first_token_s / 2)


def blames_target(error: DaarionError, *, cut_short: bool) -> bool:
    """Whether `error` counts against the target's circuit; `cut_short` tells that the caller's patience ended too early to say."""
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
