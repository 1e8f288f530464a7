"""Reads a Server-Sent Events response, as a browser would."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass


@dataclass
class ServerSentEvent:
    id: str | None
    name: str
    data: dict


@contextlib.asynccontextmanager
async def event_stream(http, url, **options):
    """Yields an async iterator of events; comments come as None. The server has answered when it is
    there.
    """
    async with http.stream("GET", url, timeout=None, **options) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield _events(response)


async def _events(response):
    fields = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield None
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield ServerSentEvent(
                fields.get("id"), fields.get("event", "message"), json.loads(fields["data"])
            )
            fields = {}
        else:
            fields = {}


async def take(events, count, seconds=30):
    """Returns the next `count` events."""
    found = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            event = await anext(events)
            if event is not None:
                found.append(event)
    return found
