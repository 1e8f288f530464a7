"""A client has a bounded time to send the head of a request, also on ports before which no HAProxy stands.

uvicorn waits for ever: its keep-alive bound ends with the first byte. Serve's servers are uvicorn, too, in every ingress replica and in
its own proxy; `ray_variables` names `bound_heads` as the callback that Serve calls before it starts one.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0
MAX_HEAD_BYTES = 64 << 10
"""HAProxy takes less. Without a bound a client could fill the memory within `HEAD_S`."""


class BoundedHeads(HttpToolsProtocol):
    """Closes a connection that has no request in work and sends no whole head for `HEAD_S`; idle ones keep their own bound."""

    _overdue: asyncio.TimerHandle | None = None
    _is_in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A new connection owes a head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """A begun head is owed its rest; what still comes of a body whose request has been answered is as good as one."""
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._is_in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.close()
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        elif self._overdue is not None:
            self._stop_waiting()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        """It has ended."""
        self._is_in_head = False
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is owed any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def bound_heads() -> list[Any]:
    """Lets each server of this process that is not told otherwise bound its heads. Returns no middlewares, as Serve's callback must."""
    auto.AutoHTTPProtocol = BoundedHeads
    return []
