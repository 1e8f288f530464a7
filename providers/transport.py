"""Posts JSON to a provider: pooled HTTP/1.1 connections by aiohttp, with deadlines of our own.

    post ──► status, headers ──► read, read, … b"" ──► release: connection reused, or closed

Why aiohttp, and httpx2 everywhere else: docs/decisions/129-http-clients.md.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import TimerNoop
from aiohttp.http import StreamWriter
from aiohttp.tracing import Trace
from yarl import URL

from common.http.client import tls_context
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
    ProxyUnreachable,
    TimedOut,
    mapped,
)
from common.http.inflate import PIECE_BYTES, Inflater, Undecodable

KEEPALIVE_S = 60.0
DNS_CACHE_S = 30
"""How long a name's addresses are cached."""
HAPPY_EYEBALLS_DELAY_S = 0.25
"""How long one address may delay the next one (RFC 8305)."""
SHORTEST_CONNECT_S = 0.001
"""aiohttp takes 0 for no bound at all."""
LONGEST_WAIT_S = 86_400.0
"""An event loop takes no infinite delay."""
MAX_HEADER_BYTES = 16 << 10
"""Of one header line; aiohttp takes at most 128 of them."""


class UnsolicitedDataError(aiohttp.ClientError):
    """The server sent bytes on a new connection before any request."""


AIOHTTP_ERRORS: Mapping[type[Exception], type[HttpError]] = {
    aiohttp.ClientConnectorError: ConnectFailed,
    aiohttp.ClientProxyConnectionError: ProxyUnreachable,
    aiohttp.ClientHttpProxyError: ProxyRefused,
    aiohttp.ConnectionTimeoutError: ConnectTimedOut,
    aiohttp.ServerFingerprintMismatch: ConnectFailed,
    aiohttp.InvalidURL: ConnectFailed,
    aiohttp.NonHttpUrlClientError: ConnectFailed,
    aiohttp.ClientConnectionError: ConnectionBroken,
    aiohttp.ClientResponseError: MalformedAnswer,
    aiohttp.ClientPayloadError: AnswerCutOff,
    TimeoutError: TimedOut,
    OSError: ConnectionBroken,
    UnicodeError: ConnectFailed,  # a name too long for DNS
    ValueError: MalformedAnswer,
    UnsolicitedDataError: MalformedAnswer,
}
"""Looked up by the nearest base class of an error."""
AIOHTTP_FAILURES = (aiohttp.ClientError, OSError, ValueError)


class Transport:
    """Posts JSON bodies to one URL. Redirects, cookies and the environment are ignored.

    Connections are not bounded here: a provider's slots bound its calls.
    """

    def __init__(self, url: str, headers: Mapping[str, str], proxy: str | None = None) -> None:
        """Call it on the running event loop. `proxy` is a forward proxy's URL with its credentials.

        Raises ValueError for a header that cannot be sent.
        """
        sent = {"accept-encoding": "identity", "content-type": "application/json"}
        sent |= {name.lower(): value for name, value in headers.items()}
        if not all(f"{name}{value}".isprintable() for name, value in sent.items()):
            raise ValueError("a header holds a control character")
        self._loop = asyncio.get_running_loop()
        # The template of every request; the connector reads from it where to connect.
        self._request = aiohttp.ClientRequest(
            hdrs.METH_POST,
            URL(url),
            headers=sent,
            loop=self._loop,
            proxy=URL(proxy) if proxy else None,
        )
        # A forward proxy takes the whole URL, unless it tunnels TLS.
        target = url if proxy and not self._request.is_ssl() else self._request.url.raw_path_qs
        self._request_line = f"{hdrs.METH_POST} {target} HTTP/1.1"
        self._open: set[HttpExchange] = set()
        self._connector = _Connector(
            limit=0,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=DNS_CACHE_S,
            happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S,
            interleave=1,
            ssl=tls_context(),
        )

    async def post(
        self, body: bytes, *, connect_s: float, limit_s: float = math.inf
    ) -> HttpExchange:
        """Returns the exchange once the answer's head is here; the caller must release it.

        `limit_s` bounds the wait for the head, and later reads until `expires_at` is changed.

        Raises HttpError: before anything was sent ConnectFailed, afterwards TimedOut,
        ConnectionBroken or MalformedAnswer.
        """
        if self._connector.closed:
            raise ConnectFailed
        expires_at = time.monotonic() + limit_s
        try:
            connection = await self._connected(connect_s, limit_s)
            response = await self._answered(connection, body, expires_at)
        except AIOHTTP_FAILURES as error:
            if isinstance(error, aiohttp.ClientHttpProxyError):
                raise ProxyRefused(error.status) from None
            failure = mapped(error, AIOHTTP_ERRORS)
            if issubclass(failure, ConnectFailed):
                self._connector.clear_dns_cache()  # the next call looks the name up again
            raise failure from None
        if response.status == PROXY_AUTHENTICATION_REQUIRED:
            response.close()
            raise ProxyRefused(response.status)
        exchange = HttpExchange(response, expires_at, self._open.discard)
        self._open.add(exchange)
        return exchange

    async def close(self) -> None:
        """Closes every connection; calls in progress fail."""
        for exchange in list(self._open):
            exchange.release()
        await self._connector.close()

    async def _connected(self, connect_s: float, limit_s: float) -> Connection:
        timeout = _connecting(connect_s)
        if limit_s < connect_s:
            timeout = aiohttp.ClientTimeout(total=None, connect=max(limit_s, SHORTEST_CONNECT_S))
        try:
            return await self._connector.connect(self._request, [], timeout)
        except TimeoutError:
            if limit_s < connect_s:
                raise
            raise aiohttp.ConnectionTimeoutError from None

    async def _answered(
        self, connection: Connection, body: bytes, expires_at: float
    ) -> aiohttp.ClientResponse:
        """Sends a request; returns its answer once the head is here.

        It bypasses aiohttp's ClientSession, which would take half as much CPU again.
        """
        protocol = connection.protocol
        assert protocol is not None
        writer = StreamWriter(protocol, self._loop)
        response = aiohttp.ClientResponse(
            hdrs.METH_POST,
            self._request.url,
            writer=None,
            continue100=None,
            timer=TimerNoop(),
            request_info=self._request.request_info,
            traces=[],
            loop=self._loop,
            session=None,  # type: ignore[arg-type]  # aiohttp's own tests pass None, too
            stream_writer=writer,
        )
        timer = _fail_at(expires_at, protocol)
        try:
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                read_bufsize=PIECE_BYTES,
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
            )
            headers = self._request.headers.copy()
            headers[hdrs.CONTENT_LENGTH] = str(len(body))
            await writer.write_headers(self._request_line, headers)
            await writer.write(body, drain=False)  # an answer may come before all of it is sent
            await response.start(connection)
        except BaseException:
            response.close()
            connection.close()
            raise
        finally:
            timer.cancel()
        response.content.on_eof(functools.partial(_abort_if_sending, protocol))
        return response


class HttpExchange:
    """The answer to one request. `release` must always be called; it calls `released`.

    `headers` are case-insensitive and return the first of several. A read that waits longer than
    until `expires_at` (monotonic seconds) raises TimedOut.
    """

    __slots__ = (
        "_content",
        "_inflater",
        "_released",
        "_response",
        "expires_at",
        "headers",
        "status",
    )

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        expires_at: float,
        released: Callable[[HttpExchange], None],
    ) -> None:
        """Raises MalformedAnswer for an answer that does not fit our request."""
        self._released = released
        self._response = response
        self._content = response.content
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.expires_at = expires_at
        self._inflater: Inflater | None = None
        encoding = self.headers.get("Content-Encoding", "").strip().lower()
        try:
            if encoding not in {"", "identity"}:
                self._inflater = Inflater(encoding)
            if self.status < 200:
                raise MalformedAnswer  # switching protocols, which was not asked for
        except (Undecodable, MalformedAnswer):
            self.release()
            raise MalformedAnswer from None

    async def read(self) -> bytes:
        """Returns the next bytes of the body, decoded; `b""` at its end.

        Raises AnswerCutOff or TimedOut.
        """
        if self._inflater is None:
            return await self._received()
        try:
            while not (piece := self._inflater.pending()):
                if not (received := await self._received()):
                    self._inflater.check_ended()
                    return b""
                self._inflater.feed(received)
        except Undecodable:
            raise AnswerCutOff from None
        return piece

    async def whole(self, limit: int) -> bytes:
        """Returns the whole body. Raises AnswerTooLarge for more than `limit` bytes, else as
        `read`.
        """
        parts, size = [], 0
        while piece := await self.read():
            size += len(piece)
            if size > limit:
                raise AnswerTooLarge
            parts.append(piece)
            if self._inflater is None and self._content.at_eof():  # received and read
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def ended(self) -> bool:
        """Whether the whole answer has arrived."""
        return self._content.is_eof()

    def release(self) -> None:
        """Gives the connection back; an answer that has not ended is cut off by closing it."""
        connection = self._response.connection
        if connection is not None:  # the answer has not ended
            if connection.transport is not None:
                connection.transport.abort()  # not held up by what is still to be sent
            self._response.close()
        self._released(self)

    async def _received(self) -> bytes:
        """Returns the next bytes as they were sent; `b""` at the end."""
        try:
            if self._content.is_eof():  # no wait, so no timer
                return await self._content.readany()
            timer = _fail_at(self.expires_at, self._content)
            try:
                return await self._content.readany()
            finally:
                timer.cancel()
        except TimeoutError:
            raise TimedOut from None
        except AIOHTTP_FAILURES:
            raise AnswerCutOff from None


class _Connector(aiohttp.TCPConnector):
    """Does not reuse a connection on which bytes arrived that no request asked for.

    aiohttp would give them to the next request as its answer: another caller's, or a forged one.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's signature
    ) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if protocol is None:
                return connection
            fresh = protocol not in self._used
            self._used.add(protocol)
            if not protocol.should_close:
                return connection
            connection.close()
            if fresh:  # a server that speaks first: another connection would be the same
                raise UnsolicitedDataError


def _abort_if_sending(protocol: ResponseHandler) -> None:
    """Ends a connection whose answer came before all of the request was sent."""
    transport = protocol.transport
    if transport is not None and transport.get_write_buffer_size():
        transport.abort()


def _fail_at(
    expires_at: float, waiting: ResponseHandler | aiohttp.StreamReader
) -> asyncio.TimerHandle:
    """Ends the wait for an answer with TimeoutError; cheaper than `asyncio.timeout` by 5 µs."""
    wait_s = min(max(0.0, expires_at - time.monotonic()), LONGEST_WAIT_S)
    return asyncio.get_running_loop().call_later(wait_s, waiting.set_exception, TimeoutError())


@functools.cache
def _connecting(connect_s: float) -> aiohttp.ClientTimeout:
    """Bounds connecting alone: `_fail_at` bounds everything after. One object for each value."""
    return aiohttp.ClientTimeout(total=None, connect=connect_s)
