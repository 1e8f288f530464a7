"""One connection of this process to NATS: opened in the background, reopened when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import nats.errors
from nats.aio.client import Client

from common.retry import retry
from common.tasks import end_tasks
from contracts.errors import Unavailable
from contracts.events import EventLog

CONNECT_TIMEOUT_S = 2
ATTEMPT_TIMEOUT_S = 10
"""Bounds one attempt as a whole: the client library may hang after a failed TLS handshake."""
RECONNECT_WAIT_S = 1
DRAIN_TIMEOUT_S = 3
CLOSE_TIMEOUT_S = 2
PING_INTERVAL_S = 5
"""A server that leaves two pings unanswered is considered gone; the client reconnects."""
PENDING_WAIT_S = 1.0
"""Bounds the wait of a publisher while too much is pending; the client's default is unbounded."""

OnConnect = Callable[[Client], Awaitable[None]]
"""Prepares streams and subscriptions after the first connection; an error leads to another attempt.
The client restores subscriptions when it reconnects."""


class NatsLink:
    """Connects in the background until it succeeds; starting it never waits for NATS.

    `url` may name several servers, separated by commas. `?ca=` in the first one names the file of
    the authority that signs the servers' certificates. TLS is then negotiated first, so that an
    impostor sees no credentials.
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
        self._prepared = self._announced = False

    def start(self) -> None:
        """Starts connecting; must be called on the running event loop."""
        self._task = asyncio.create_task(self._connect(), name=f"nats:{self._name}")

    async def probe(self) -> None:
        """Raises Unavailable without a connection, or before its streams are prepared."""
        if not self._prepared:
            raise Unavailable("NATS is not connected yet, or JetStream is away")
        self.client()

    def client(self) -> Client:
        """Returns the connection. Raises Unavailable while there is none."""
        if self._client is None or not self._client.is_connected:
            raise Unavailable("NATS cannot be reached")
        return self._client

    async def close(self) -> None:
        """Flushes within `DRAIN_TIMEOUT_S`, and closes within `CLOSE_TIMEOUT_S`."""
        if self._task is not None:
            await end_tasks([self._task])
        if self._client is not None:
            with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self._client.flush()
            await _close(self._client)

    async def _connect(self) -> None:
        await retry(
            self._attempt, self._note_away, first_s=RECONNECT_WAIT_S, longest_s=RECONNECT_WAIT_S
        )
        self._events.emit("nats.connected")

    async def _attempt(self) -> None:
        if self._client is None:
            self._client = await self._opened()
        if self._on_connect is not None:
            await self._on_connect(self._client)
        self._prepared = True

    async def _opened(self) -> Client:
        client = Client()
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                await client.connect(
                    **_servers(self._url),
                    name=self._name,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    reconnect_time_wait=RECONNECT_WAIT_S,
                    max_reconnect_attempts=-1,
                    allow_reconnect=True,
                    ping_interval=PING_INTERVAL_S,
                    flush_timeout=PENDING_WAIT_S,
                    error_cb=self._note_error,
                    disconnected_cb=self._note_disconnected,
                )
        except BaseException:  # cancelled, too: the client may be connected half-way
            await _close(client)
            raise
        return client

    def _note_away(self, error: Exception) -> bool:
        """Leads to another attempt, whatever failed: the client library raises many errors."""
        if not self._announced:
            self._announced = True
            self._events.emit("nats.away", error=type(error).__name__)
        return True

    async def _note_error(self, error: Any) -> None:
        self._events.emit("nats.error", error=type(error).__name__)

    async def _note_disconnected(self) -> None:
        if self._client is not None:  # else there was no connection yet
            self._events.emit("nats.disconnected")


async def _close(client: Client) -> None:
    """Closes within `CLOSE_TIMEOUT_S`; the library may wait for a failed TLS handshake for ever."""
    # The library raises errors of many kinds, and asserts that it was connected once.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await client.close()


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
