"""One connection of this process to NATS: made in the background, remade when it breaks, shared by who publishes and listens."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import nats
import nats.errors
from nats.aio.client import Client

from contracts.errors import Unavailable
from contracts.events import EventLog

CONNECT_TIMEOUT_S = 2
RECONNECT_WAIT_S = 1
DRAIN_TIMEOUT_S = 3
PING_INTERVAL_S = 5
"""A server that leaves two of these unanswered is taken for gone: the connection is made anew."""
FLUSH_TIMEOUT_S = 1.0
"""How long a publisher waits where too much is pending; the client's own default is without a bound."""

OnConnect = Callable[[Client], Awaitable[None]]
"""Prepares streams and subscriptions on a new connection; whatever it raises leads to the next attempt."""


class NatsLink:
    """Connects and goes on connecting; nobody who starts it waits for NATS.

    `url` may name several servers, separated by commas. `?ca=` at the first names the file of a certificate by which they must
    prove themselves before anything else is said: TLS is spoken first, so that whoever listens in a server's place learns and
    sends nothing.
    """

    def __init__(
        self, url: str, events: EventLog, *, name: str, on_connect: OnConnect | None = None
    ) -> None:
        self._url = url
        self._events = events
        self._name = name
        self._on_connect = on_connect
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._prepared = False

    def start(self) -> None:
        """Begins to connect; must be called on the running event loop."""
        self._task = asyncio.create_task(self._connect(), name=f"nats:{self._name}")

    async def probe(self) -> None:
        """Raises Unavailable while there is no connection, or its streams are not prepared."""
        if not self._prepared:
            raise Unavailable("NATS is not connected yet, or JetStream is away")
        self.client()

    def client(self) -> Client:
        """The connection. Raises Unavailable while there is none."""
        if self._client is None or not self._client.is_connected:
            raise Unavailable("NATS cannot be reached")
        return self._client

    async def close(self) -> None:
        """Sends what is buffered and closes; never waits longer than a few seconds."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._client is not None:
            with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self._client.flush()
            with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                await self._client.close()

    async def _connect(self) -> None:
        told = False
        while True:
            try:
                await self._attempt()
            except Exception as error:  # noqa: BLE001  # the client library raises whatever its sockets and parser do
                if not told:
                    self._events.emit("nats.away", error=type(error).__name__)
                    told = True
                await asyncio.sleep(RECONNECT_WAIT_S)
            else:
                self._events.emit("nats.connected")
                return

    async def _attempt(self) -> None:
        if self._client is None:
            self._client = await nats.connect(
                **_servers(self._url),
                name=self._name,
                connect_timeout=CONNECT_TIMEOUT_S,
                reconnect_time_wait=RECONNECT_WAIT_S,
                max_reconnect_attempts=-1,
                allow_reconnect=True,
                ping_interval=PING_INTERVAL_S,
                flush_timeout=FLUSH_TIMEOUT_S,
                error_cb=self._note_error,
                disconnected_cb=self._note_disconnected,
            )
        if self._on_connect is not None:
            await self._on_connect(self._client)
        self._prepared = True

    async def _note_error(self, error: Any) -> None:
        self._events.emit("nats.error", error=type(error).__name__)

    async def _note_disconnected(self) -> None:
        self._events.emit("nats.disconnected")


def _servers(url: str) -> dict[str, Any]:
    servers = url.split(",")
    authority = parse_qs(urlsplit(servers[0]).query).get("ca")
    if authority is None:
        return {"servers": servers}
    servers = [urlsplit(server)._replace(query="").geturl() for server in servers]
    return {
        "servers": servers,
        "tls": ssl.create_default_context(cafile=authority[0]),
        "tls_handshake_first": True,
    }
