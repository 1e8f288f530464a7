"""Toolcore's way in over NATS, without Serve."""

from __future__ import annotations

import asyncio
import contextlib
import json

from backends.nats.link import NatsLink
from configs.tools import NatsSettings
from interfaces.nats.senders import Senders
from interfaces.nats.tools import ToolNats
from tests.support.access import fixed_access
from tests.support.tools.toolcore import AGENT


@contextlib.asynccontextmanager
async def listening(here, server, access=None, **limits):
    """Yields the connection of a replica that takes calls from the server."""
    senders = Senders(access or fixed_access())
    interface = ToolNats(here.toolcore.calls, senders, here.events, NatsSettings(**limits))
    link = NatsLink(server.url, here.events, name="test", on_connect=interface.on_connect)
    link.start()
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(Exception):
                await link.probe()
                break
            await asyncio.sleep(0.02)
    yield link
    await interface.close()
    await link.close()


def request(tool_id="test.echo", **fields):
    return json.dumps({"tool_id": tool_id, "args": {}, **AGENT, **fields}).encode()


async def answer_of(message):
    return json.loads(message.data)
