"""What follows a failed attempt: the next target, or the caller. One pure function, one table.

| Failure | What follows |
|---|---|
| refused as invalid, too long, filtered (`InvalidRequest`) | the caller: another target would be asked the same wrong thing |
| credentials or model refused by the provider (`UpstreamAuthFailed`, `UpstreamMisconfigured`) | the next target |
| throttled, 5xx, unreachable, cut off, garbage (`UpstreamError`) | the next target |
| silent provider (`UpstreamTimeout`) | the next target, while the request's deadline lasts |
| the engine is starting, gone or full (`Unavailable`) | the next target |
| the request's own deadline (`DeadlineExceeded`), anything else | the caller |
"""

from __future__ import annotations

from contracts.deadline import Deadline
from contracts.errors import DaarionError, Unavailable, UpstreamError, UpstreamTimeout


def fails_over(error: DaarionError, deadline: Deadline) -> bool:
    """Whether the next target of the route should be tried after `error`."""
    return isinstance(error, UpstreamError | UpstreamTimeout | Unavailable) and deadline.remaining() > 0
