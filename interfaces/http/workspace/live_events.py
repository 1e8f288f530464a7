"""A live event stream as a response that notices when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import orjson
from starlette.types import Receive, Scope, Send

from common.tasks import end_tasks
from interfaces.http.base.sse import EventStreamResponse

HELLO = b"retry: 1000\n: connected\n\n"
HEARTBEAT = b": keep-alive\n\n"


def named_event(name: str, event_id: int, payload: object) -> bytes:
    """Returns one event with a name and the id from which a client resumes."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event_id, name.encode(), orjson.dumps(payload))


class LiveEvents(EventStreamResponse):
    """Sends events until they end or the client disconnects, which only `receive` reports."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(events, close)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(super().__call__(scope, receive, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks([sending, leaving])
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
