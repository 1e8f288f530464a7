"""Fixtures and helpers of the tests of the HTTP executor."""

from collections.abc import AsyncIterator

import pytest

from executors.http.executor import HttpToolExecutor
from tests.support.events import RecordedEvents
from tests.support.tools.executions import Secrets, definition
from tests.support.tools.server import ToolServer

LOOPBACK = [{"cidr": "127.0.0.0/8"}]
SECRET = "tok-9f8e7d6c5b4a"


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with ToolServer() as running:
        yield running


@pytest.fixture
async def executor(events: RecordedEvents) -> AsyncIterator[HttpToolExecutor]:
    made = HttpToolExecutor(Secrets(crm=SECRET, broken="line\r\nbreak"), events)
    yield made
    await made.close()


def tool(server: ToolServer, path: str, **changes):
    return definition(server.url(path), **{"egress": LOOPBACK, **changes})
