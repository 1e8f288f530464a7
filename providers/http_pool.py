"""Kept-alive HTTP/1.1 connections to one provider.

It does what calls of a model need and no more: one method, no redirects, no cookies, no proxies, no compression asked for. Why it is
ours: docs/decisions/004.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import time
from collections.abc import Mapping
from typing import cast

import aiohappyeyeballs
from yarl import URL

from providers.http_exchange import (
    ConnectFailed,
    ConnectionBroken,
    ConnectTimedOut,
    Exchange,
    TimedOut,
)

KEEPALIVE_S = 60.0
ADDRESSES_S = 30.0
"""How long a name's addresses are used before they are looked up again."""
TICK_S = 0.02
"""How often exchanges are looked at that may have expired."""
NEXT_ADDRESS_S = 0.25
"""How long one address may keep the next one waiting (RFC 8305)."""


class HttpPool:
    """Sends `POST`s to one URL. Connections are made when needed; the one that was used last is used first."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """Raises ValueError for a URL or a header that cannot be sent."""
        parsed = URL(url)
        if parsed.scheme not in {"http", "https"} or not parsed.raw_host or not parsed.port:
            raise ValueError("no http or https URL")
        self._host, self._port = parsed.raw_host, parsed.port
        self._tls = parsed.scheme == "https"
        own = {
            "Host": parsed.host_port_subcomponent or "",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        lines = {name.lower(): f"{name}: {value}" for name, value in {**own, **headers}.items()}
        if not all(line.isprintable() for line in lines.values()):
            raise ValueError("a header holds a control character")
        head = "".join(f"{line}\r\n" for line in lines.values())
        self._head = f"POST {parsed.raw_path_qs} HTTP/1.1\r\n{head}Content-Length: ".encode()
        self._idle: list[_Connection] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._open: set[_Connection] = set()
        self._addresses: list[aiohappyeyeballs.AddrInfoType] = []
        self._looked_up = float("-inf")
        self._closed = False

    async def post(
        self, body: bytes, *, connect_s: float, limit_s: float = float("inf")
    ) -> Exchange:
        """Sends `body` and returns the exchange once its head has come; the caller must release it.

        Raises:
            ConnectFailed: no connection came about within `connect_s`.
            TimedOut: there was no head within `limit_s`; the exchange expires then, if that is not changed.
            ConnectionBroken: it ended before the head of an answer.
            MalformedAnswer: what came is no HTTP.
        """
        expires_at = time.monotonic() + limit_s
        connection = self._kept() or await self._connected(connect_s, limit_s)
        exchange = connection.send(b"%b%d\r\n\r\n" % (self._head, len(body)), body)
        exchange.expires_at = expires_at
        if self._ticker is None:
            self._tick()
        try:
            await exchange.head()
        except BaseException:
            exchange.release()
            raise
        return exchange

    def close(self) -> None:
        """Closes every connection, those in use as well."""
        self._closed = True
        for timer in (self._sweeper, self._ticker):
            if timer is not None:
                timer.cancel()
        for connection in list(self._open):
            connection.close()

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable(time.monotonic()):
                return connection
            connection.close()
        return None

    async def _connected(self, connect_s: float, limit_s: float) -> _Connection:
        try:
            async with asyncio.timeout(min(connect_s, limit_s)):
                return await self._connect()
        except TimeoutError:
            raise (ConnectTimedOut if connect_s <= limit_s else TimedOut) from None
        except (
            OSError,
            UnicodeError,
        ):  # ssl's errors are OSErrors; a name too long for DNS is a UnicodeError
            self._looked_up = float("-inf")
            raise ConnectFailed from None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        addresses = await self._lookup(loop)
        sock = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1
        )
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self, loop),
                sock=sock,
                ssl=_tls_context() if self._tls else None,
                server_hostname=self._host if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    async def _lookup(self, loop: asyncio.AbstractEventLoop) -> list[aiohappyeyeballs.AddrInfoType]:
        now = time.monotonic()
        if now - self._looked_up > ADDRESSES_S:
            found = await loop.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
            self._addresses, self._looked_up = list(found), now
        return self._addresses

    def _tick(self) -> None:
        """Lets exchanges expire: one timer for all of them, since one for each would cost more than the rest of a call's waiting."""
        busy = [connection.exchange for connection in self._open if connection.exchange is not None]
        now = time.monotonic()
        for exchange in busy:
            exchange.expire(now)
        self._ticker = (
            asyncio.get_running_loop().call_later(TICK_S, self._tick)
            if busy and not self._closed
            else None
        )

    # --- the connections' side

    def opened(self, connection: _Connection) -> None:
        """Notes a connection, to close it with the pool."""
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        """Forgets a connection that is closed."""
        self._open.discard(connection)

    def keep(self, connection: _Connection) -> None:
        """Takes a connection back."""
        if self._closed:
            connection.close()
            return
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(KEEPALIVE_S, self._sweep)

    def _sweep(self) -> None:
        """Closes what was not used for long."""
        self._sweeper = None
        now = time.monotonic()
        old = [connection for connection in self._idle if not connection.usable(now)]
        self._idle = [connection for connection in self._idle if connection.usable(now)]
        for connection in old:
            connection.close()
        if self._idle:
            self._sweeper = asyncio.get_running_loop().call_later(KEEPALIVE_S / 2, self._sweep)


class _Connection(asyncio.Protocol):
    """One connection, with the exchange that runs on it, if any."""

    def __init__(self, pool: HttpPool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self.exchange: Exchange | None = None
        self._idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            "asyncio.Transport", transport
        )  # other event loops have classes of their own
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self._transport.abort()  # nothing was asked
        else:
            self.exchange.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        if self.exchange is not None:
            self.exchange.lost(exc)

    def usable(self, now: float) -> bool:
        """Whether it can be used again."""
        return not self._transport.is_closing() and now - self._idle_since < KEEPALIVE_S

    def send(self, head: bytes, body: bytes) -> Exchange:
        """Begins an exchange."""
        self.exchange = exchange = Exchange(self._transport, self._loop, self._released)
        if self._transport.is_closing():
            exchange.lost(ConnectionBroken())
        else:
            self._transport.write(head + body)
        return exchange

    def close(self) -> None:
        """Closes it; an exchange under way breaks."""
        self._transport.abort()

    def _released(self, reusable: bool) -> None:  # noqa: FBT001  # the one question an exchange answers
        self.exchange = None
        if reusable:
            self._idle_since = time.monotonic()
            self._pool.keep(self)
        else:
            self._transport.abort()


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """The system's certificate authorities, or those of `SSL_CERT_FILE`; made once, because reading them takes long."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
