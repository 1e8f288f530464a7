"""Server-Sent Events as a response."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from contracts.errors import DaarionError

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def event(payload: object) -> bytes:
    """Returns one `data` event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def error_event(error: DaarionError, request_id: str) -> bytes:
    """Returns the in-band form of a failure: an event named `error` with the envelope."""
    return b"event: error\n" + event(error.envelope(request_id))


class EventStreamResponse(Response):
    """Sends events as they come.

    However the response ends, `close` is awaited: it stops what feeds the events.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__()
        self._events = events
        self._close = close

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002  # the ASGI signature
        receive: Receive,  # noqa: ARG002  # the ASGI signature
        send: Send,
    ) -> None:
        """Sends the headers at once, then each event in a message of its own."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._events.aclose()
            await self._close()
