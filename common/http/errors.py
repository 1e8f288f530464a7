"""How an HTTP call of ours fails, whichever library made it.

HttpError
├── ConnectFailed              no connection: nothing was sent
│   ├── ConnectTimedOut
│   ├── ProxyUnreachable       no connection to the forward proxy
│   └── ProxyRefused           the forward proxy did not open the tunnel
├── TimedOut                   connected, but no answer in time
├── ConnectionBroken           the connection ended before the head of an answer
├── MalformedAnswer            not HTTP, over a bound, or in an encoding that was not asked for
│   └── AnswerTooLarge         the body is over the caller's bound
└── AnswerCutOff               the answer ended, or became unreadable, after its head
"""

from __future__ import annotations

from collections.abc import Mapping

PROXY_AUTHENTICATION_REQUIRED = 407
"""Only forward proxies answer so: to CONNECT, or in place of an http:// target."""


class HttpError(Exception):
    """The root of the tree."""


class ConnectFailed(HttpError):
    """Name, route, port or TLS: no connection came about, so nothing was sent."""


class ConnectTimedOut(ConnectFailed):
    """No connection came about in time."""


class ProxyUnreachable(ConnectFailed):
    """No connection to the forward proxy came about."""


class ProxyRefused(ConnectFailed):
    """The forward proxy refused to connect; `status` is its answer's, if known."""

    def __init__(self, status: int | None = None) -> None:
        super().__init__(status)
        self.status = status


class TimedOut(HttpError):
    """No answer, or no more of it, came in time."""


class ConnectionBroken(HttpError):
    """The connection ended before the head of an answer."""


class MalformedAnswer(HttpError):
    """The answer is not HTTP, or over a bound of ours."""


class AnswerTooLarge(MalformedAnswer):
    """The body is over the caller's bound."""


class AnswerCutOff(HttpError):
    """The answer ended, or became unreadable, after its head."""


def mapped(
    error: BaseException, table: Mapping[type[Exception], type[HttpError]]
) -> type[HttpError]:
    """Returns what `table` says of the nearest base class of a library's exception."""
    return next((table[base] for base in type(error).__mro__ if base in table), HttpError)
