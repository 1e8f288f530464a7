"""The routes of Toolcore as tests call them."""

from __future__ import annotations

import pytest

from tests.support.tools.toolcore import AGENT, client, replica, tool

STRICT = {
    "type": "object",
    "properties": {"limit": {"type": "integer", "minimum": 1}},
    "required": ["limit"],
    "additionalProperties": False,
}


def body(tool_id="test.echo", **fields):
    return {"tool_id": tool_id, "args": {}, **AGENT, **fields}


@pytest.fixture
async def served(database_url):
    tools = [
        tool("test.echo"),
        tool("test.strict", input_schema=STRICT),
        tool("test.private", allowed_agents=["agent:pm"]),
        tool(
            "test.list",
            output_schema={"type": "array", "items": {"type": "string"}},
            inline_result_bytes=256,
        ),
    ]
    secrets = {"own": {"env": "DAARION_INTERNAL_SECRET", "tools": ["*"]}}
    async with (
        replica(database_url, *tools, secrets=secrets) as here,
        client(here.toolcore, here.events) as http,
    ):
        yield here, http
