"""Bounds slow clients on ports without HAProxy: request heads that never end, answers never read.

uvicorn waits for the rest of a head without a bound: its keep-alive timer ends with the first byte.
Serve's servers are uvicorn, too, in every ingress replica and in its own proxy; there
`ray_patches.bound_heads` sets the protocol.
"""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0
MAX_HEAD_BYTES = 64 << 10
"""More than HAProxy accepts. Without a bound a client could fill the memory within `HEAD_S`."""
ROUTES = "/-/routes"
"""Where Serve lists its applications, to anybody."""
CLOSED = "/-/closed"
"""A path of no application."""
UNREAD_S = 60.0
"""The kernel ends a connection whose client reads nothing of a waiting answer for so long."""


class BoundedHeads(HttpToolsProtocol):
    """Aborts a connection that has no running request and sends no whole head for `HEAD_S`.

    It also closes `ROUTES`, which Serve answers itself on every port, before our ingress.

    Between two requests uvicorn's own bound holds. Aborted, not closed: closing would wait until
    the client has read what was sent to it.
    """

    _overdue: asyncio.TimerHandle | None = None
    _is_in_head = False
    _head_bytes = 0

    def connection_made(  # type: ignore[override]  # as in uvicorn
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_S * 1_000))
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Waits for the rest of a head.

        The rest of a body whose request is already answered counts as a head, so it does not keep
        the connection either.
        """
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._is_in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        elif self._overdue is not None:
            self._stop_waiting()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()
        if self.scope.get("path") == ROUTES:  # the application reads it later, in a task
            self.scope["path"] = CLOSED

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
