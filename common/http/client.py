"""HTTP out: the one way to make an `httpx2` client, to read an answer, and to name a failure.

The relay to LLM providers (`providers/transport.py`) and the pinned egress of tools
(`executors/http`) use aiohttp instead: docs/decisions/129 and 070.
"""

from __future__ import annotations

import functools
import logging
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2

from common.http.errors import (
    PROXY_AUTHENTICATION_REQUIRED,
    AnswerCutOff,
    AnswerTooLarge,
    ConnectFailed,
    ConnectionBroken,
    ConnectTimedOut,
    HttpError,
    MalformedAnswer,
    ProxyRefused,
    TimedOut,
    mapped,
)
from common.http.inflate import Undecodable, inflated

KEEPALIVE_S = 15.0
MAX_CONNECTIONS = 1_000
"""Per client. Callers bound their concurrency themselves; this is a backstop."""
CONNECT_S = 5.0

# Its INFO lines hold URLs with their queries, which may be message contents.
logging.getLogger("httpx2").setLevel(logging.WARNING)


def open_client(
    *,
    base_url: str = "",
    headers: Mapping[str, str] | None = None,
    proxy: str | None = None,
    connect_s: float = CONNECT_S,
) -> httpx2.AsyncClient:
    """Returns a pooled client that verifies TLS and ignores redirects, cookies and the environment.

    `proxy` is a forward proxy's URL with its credentials; without one, connections are direct. Only
    connecting has a timeout: callers bound the whole call with `asyncio.timeout`.
    """
    return httpx2.AsyncClient(
        base_url=base_url,
        headers=_encoded(
            {"Accept-Encoding": "identity", "User-Agent": "daarion-serve", **(headers or {})}
        ),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        verify=tls_context(),
        proxy=proxy,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx2.Timeout(None, connect=connect_s),
        limits=httpx2.Limits(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=None,
            keepalive_expiry=KEEPALIVE_S,
        ),
    )


@asynccontextmanager
async def requested(
    client: httpx2.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[httpx2.Response]:
    """Sends one request and yields the answer with its body unread.

    A GET is repeated once if it was sent on a kept connection that ended without an answer: servers
    close idle connections whenever they like. `options` are those of `build_request`.

    Raises HttpError, also while the caller reads the body.
    """
    with http_errors():
        request = client.build_request(method, url, headers=_encoded(headers or {}), **options)
        response = await _answered(client, request)
    try:
        if response.status_code == PROXY_AUTHENTICATION_REQUIRED:
            raise ProxyRefused(response.status_code)
        with http_errors(begun=True):
            yield response
    finally:
        await response.aclose()


async def _answered(client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
    is_kept = True

    async def trace(event: str, _info: Mapping[str, Any]) -> None:
        nonlocal is_kept
        if event == "connection.connect_tcp.started":
            is_kept = False

    request.extensions = {**request.extensions, "trace": trace}
    try:
        return await client.send(request, stream=True)
    except (httpx2.NetworkError, httpx2.RemoteProtocolError):
        if request.method != "GET" or not is_kept:
            raise
    return await client.send(request, stream=True)


async def read_bounded(response: httpx2.Response, limit: int) -> bytes:
    """Returns the decoded body. Raises AnswerTooLarge above `limit` bytes, else AnswerCutOff."""
    body = bytearray()
    try:
        async for piece in inflated(response.aiter_raw(), response.headers.get("content-encoding")):
            body += piece
            if len(body) > limit:
                raise AnswerTooLarge
    except Undecodable:
        raise AnswerCutOff from None
    return bytes(body)


HTTPX2_ERRORS: Mapping[type[Exception], type[HttpError]] = {
    httpx2.ConnectTimeout: ConnectTimedOut,
    httpx2.PoolTimeout: ConnectTimedOut,
    httpx2.TimeoutException: TimedOut,
    httpx2.ConnectError: ConnectFailed,
    httpx2.NetworkError: ConnectionBroken,
    httpx2.RemoteProtocolError: ConnectionBroken,
    httpx2.LocalProtocolError: ConnectFailed,
    httpx2.ProtocolError: MalformedAnswer,
    httpx2.ProxyError: ProxyRefused,
    httpx2.UnsupportedProtocol: ConnectFailed,
    httpx2.InvalidURL: ConnectFailed,
    httpx2.DecodingError: MalformedAnswer,
    httpx2.TooManyRedirects: MalformedAnswer,
    httpx2.SSEError: MalformedAnswer,
}
"""By the nearest base class. Missing are only errors of the programmer (`StreamError` and the
like).
"""


@contextmanager
def http_errors(*, begun: bool = False) -> Iterator[None]:
    """Turns httpx2's exceptions into HttpError; `begun`: the head of the answer is here already."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        kind = mapped(error, HTTPX2_ERRORS)
        if begun and not issubclass(kind, TimedOut):
            raise AnswerCutOff from None
        if kind is ProxyRefused:
            status = str(error)[:3]  # httpx2 gives it in the message alone: `407 Proxy …`
            raise ProxyRefused(int(status) if status.isdecimal() else None) from None
        raise kind from None


def _encoded(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    """Headers in UTF-8, which httpx2 refuses as text, and each name once, whatever its spelling."""
    return {name.lower().encode(): value.encode() for name, value in headers.items()}


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Trusts the system's certificate authorities, or `SSL_CERT_FILE`; slow to load."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
