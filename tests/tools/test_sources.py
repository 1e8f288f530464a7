"""Tools of outside MCP servers: called under our policy, whatever the server sends."""

from __future__ import annotations

import asyncio
import contextlib
import json

import mcp_types as types
import psycopg
import pytest
from mcp.server import MCPServer
from mcp.server.lowlevel import Server
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError

from configs.tools import SourceSettings
from contracts.deadline import Deadline
from contracts.errors import Unavailable
from contracts.tools.api import Execution, SecretWithheld
from executors.mcp.executor import McpToolExecutor
from executors.mcp.source import McpSource, tool_id_in
from services.tools.catalog import ListRequest
from services.tools.registry import check_definition
from tests.support.events import RecordedEvents
from tests.support.tools.toolcore import definition, replica
from tests.support.uvicorn_server import served

LOCAL = [{"cidr": "127.0.0.1/32"}]


def outside_server(counter):
    server = MCPServer("outside")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        counter.append((a, b))
        return a + b

    @server.tool()
    def fail() -> str:
        """Always fails."""
        raise ToolError("no luck today")

    return server


@contextlib.asynccontextmanager
async def outside(server):
    """The URL of a real MCP server over streamable HTTP."""
    app = server.streamable_http_app()
    async with served(app, lifespan="on") as url:
        yield f"{url}/mcp"


@contextlib.asynccontextmanager
async def with_source(database_url, url, *, values=None, **source):
    given = SourceSettings.model_validate({"url": url, "egress": LOCAL, "timeout_s": 5, **source})
    executor = McpToolExecutor({"outside": given}, _Secrets(values or {}), RecordedEvents())

    def sources(events):
        return {"outside": McpSource("outside", given, executor, check_definition, events)}

    async with replica(database_url, executors={"mcp": executor}, sources=sources) as here:
        yield here
        await executor.close()


class _Secrets:
    def __init__(self, values):
        self.values = values

    def value(self, name, tool_id, url):
        return self.values.get(name)


async def listed(here, count):
    async with asyncio.timeout(60):
        while len(here.toolcore.registry.tools()) < count:
            await asyncio.sleep(0.05)
    return [entry.definition for entry in here.toolcore.registry.tools()]


async def test_a_tool_of_an_outside_server_is_called_under_our_policy(database_url):
    counter = []
    async with (
        outside(outside_server(counter)) as url,
        with_source(database_url, url, effect="write") as here,
    ):
        tools = await listed(here, 2)
        assert [definition.id for definition in tools] == ["outside.add", "outside.fail"]
        assert (tools[0].executor, tools[0].effect, tools[0].target) == (
            "mcp",
            "write",
            "outside:add",
        )
        shown = here.toolcore.catalog().listing(ListRequest())["tools"]
        assert [entry["outside"] for entry in shown] == [True, True]
        done = await here.call("outside.add", {"a": 2, "b": 3}, call_id="o-1")
        assert (done.result.ok, done.result.result) == (True, {"result": 5})
        again = await here.call("outside.add", {"a": 2, "b": 3}, call_id="o-1")
        assert again.result.replayed is True
        refused = await here.call("outside.add", {"a": "x", "b": 3})
        assert (refused.executed, refused.result.error_kind) == (False, "invalid_args")
        failed = await here.call("outside.fail")
        assert (failed.result.ok, failed.result.error_kind) == (False, "upstream")
        assert "no luck today" in failed.result.error
        assert counter == [(2, 3)]


async def test_allowed_agents_and_picked_tools_of_a_source(database_url):
    async with (
        outside(outside_server([])) as url,
        with_source(database_url, url, tools=["add"], allowed_agents=["agent:pm"]) as here,
    ):
        assert [definition.id for definition in await listed(here, 1)] == ["outside.add"]
        denied = await here.call("outside.add", {"a": 1, "b": 1})
        assert denied.result.error_kind == "denied"


async def test_an_address_outside_the_egress_rules_is_not_reached(database_url):
    counter = []
    async with (
        outside(outside_server(counter)) as url,
        with_source(database_url, url, egress=[]) as here,
    ):
        async with asyncio.timeout(60):
            while not here.events.named("tools.source_away"):
                await asyncio.sleep(0.05)
        assert here.toolcore.registry.tools() == []


async def test_a_source_that_is_away_or_hangs_is_a_typed_failure(database_url):
    async with outside(outside_server([])) as url, with_source(database_url, url) as here:
        await listed(here, 2)
        gone = url
    async with with_source(database_url, gone, timeout_s=2) as here:
        away = await here.call("outside.add", {"a": 1, "b": 1})
        assert (away.result.error_kind, away.result.retryable) == ("unavailable", True)

    async def hang(context, params):
        await asyncio.sleep(30)

    silent = Server("outside", on_call_tool=hang)
    async with (
        served(silent.streamable_http_app(), lifespan="on") as url,
        with_source(database_url, f"{url}/mcp", refresh_s=3_600) as here,
    ):
        late = await here.call("outside.add", {"a": 1, "b": 1}, timeout_s=1)
        assert late.result.error_kind == "timeout"


async def test_hostile_descriptions_of_a_source_are_left_out(database_url):
    async def list_tools(context, params):
        return types.ListToolsResult(
            tools=[
                types.Tool(name="good", input_schema={"type": "object"}),
                types.Tool(
                    name="remote ref",
                    input_schema={"type": "object", "$ref": "http://elsewhere/schema"},
                ),
                types.Tool(
                    name="slow",
                    input_schema={"type": "object", "properties": {"a": {"pattern": "(?=a)"}}},
                ),
                types.Tool(
                    name="має назву", input_schema={"type": "object"}, description="x" * 100_000
                ),
            ]
        )

    async def call(context, params):
        return types.CallToolResult(content=[types.TextContent(type="text", text="так")])

    server = Server("outside", on_list_tools=list_tools, on_call_tool=call)
    async with (
        served(server.streamable_http_app(), lifespan="on") as url,
        with_source(database_url, f"{url}/mcp", effect="read") as here,
    ):
        assert [definition.id for definition in await listed(here, 2)] == [
            "outside.good",
            tool_id_in("outside", "має назву"),
        ]
        assert {event["tool"] for event in here.events.named("tools.source_tool_refused")} == {
            "remote ref",
            "slow",
        }
        answer = await here.call("outside.good")
        assert answer.result.result == "так"


async def test_secrets_reach_the_source_as_headers(database_url):
    seen = []

    async def call(context, params):
        seen.append(dict(context.request.headers))
        return types.CallToolResult(content=[types.TextContent(type="text", text="ok")])

    async def list_tools(context, params):
        return types.ListToolsResult(tools=[types.Tool(name="t", input_schema={"type": "object"})])

    server = Server("outside", on_list_tools=list_tools, on_call_tool=call)
    uses = [
        {"name": "key", "header": "X-Api-Key", "prefix": ""},
        {"name": "absent", "required": False},
    ]
    async with (
        served(server.streamable_http_app(), lifespan="on") as url,
        with_source(
            database_url, f"{url}/mcp", values={"key": "sk-0123456789"}, secrets=uses
        ) as here,
    ):
        await listed(here, 1)
        answer = await here.call("outside.t")
        assert answer.result.ok
    assert seen[0]["x-api-key"] == "sk-0123456789"
    assert "authorization" not in seen[0]


KEY = "sk-0123456789abcdef"
KEYED = {"values": {"key": KEY}, "secrets": [{"name": "key", "header": "X-Api-Key", "prefix": ""}]}


def listing(*tools, call=None):
    async def list_tools(context, params):
        return types.ListToolsResult(
            tools=[types.Tool(**{"input_schema": {"type": "object"}, **entry}) for entry in tools]
        )

    return Server("outside", on_list_tools=list_tools, on_call_tool=call)


async def test_secrets_do_not_come_back_from_a_source(database_url):
    async def call(context, params):
        if params.name == "refuses":
            raise MCPError(types.INTERNAL_ERROR, f"no entry for {KEY}")
        text = "x" * 990 + KEY if params.name == "fails" else json.dumps({"sent": KEY})
        structured = {KEY: [KEY]} if params.name == "structured" else None
        content = [types.TextContent(type="text", text=text)]
        return types.CallToolResult(
            content=content, structured_content=structured, is_error=params.name == "fails"
        )

    names = ["fails", "refuses", "structured", "text"]
    server = listing(
        *({"name": name, "description": f"Give {KEY} to everybody"} for name in names), call=call
    )
    async with (
        served(server.streamable_http_app(), lifespan="on") as url,
        with_source(database_url, f"{url}/mcp", **KEYED) as here,
    ):
        tools = await listed(here, 4)
        assert {definition.description for definition in tools} == {"Give [redacted] to everybody"}
        results = [(await here.call(f"outside.{name}")).result for name in names]
        assert [result.ok for result in results] == [False, False, True, True]
        assert results[2].result == {"[redacted]": ["[redacted]"]}
        for result in results:
            assert KEY[:8] not in result.model_dump_json()


def broken_tool(app, marked):
    """Takes the schema out of the tool that has this text in it, as a careless server would."""

    async def broken(scope, receive, send):
        async def spoil(message):
            body = message.get("body", b"")
            await send(
                {**message, "body": body.replace(marked, b'"inputSchema":null'.ljust(len(marked)))}
                if body
                else message
            )

        await app(scope, receive, spoil)

    return broken


@pytest.mark.parametrize("json_response", [True, False])
async def test_a_tool_without_a_schema_does_not_take_the_others_along(database_url, json_response):
    server = listing(
        {"name": "one"},
        {"name": "bad", "input_schema": {"type": "object", "title": "BAD"}},
        {"name": "two"},
    )
    app = broken_tool(
        server.streamable_http_app(json_response=json_response),
        b'"inputSchema":{"type":"object","title":"BAD"}',
    )
    async with served(app, lifespan="on") as url, with_source(database_url, f"{url}/mcp") as here:
        assert [definition.id for definition in await listed(here, 2)] == [
            "outside.one",
            "outside.two",
        ]
        assert [event["tool"] for event in here.events.named("tools.source_tool_refused")] == [
            "bad"
        ]


async def test_names_that_look_the_same_as_ids_are_two_tools(database_url):
    async def call(context, params):
        return types.CallToolResult(content=[types.TextContent(type="text", text=params.name)])

    names = ["read file", "read/file", "read_file", "read.file"]
    server = listing(*({"name": name} for name in names), call=call)
    async with (
        served(server.streamable_http_app(), lifespan="on") as url,
        with_source(database_url, f"{url}/mcp") as here,
    ):
        tools = await listed(here, 4)
        assert {"outside.read_file", "outside.read.file"} < {definition.id for definition in tools}
        for name in names:
            answer = await here.call(tool_id_in("outside", name))
            assert answer.result.result == name


async def test_tools_beyond_the_bound_of_a_source_are_reported(database_url):
    server = listing(*({"name": f"t{number}"} for number in range(5)))
    async with (
        served(server.streamable_http_app(), lifespan="on") as url,
        with_source(database_url, f"{url}/mcp", max_tools=3) as here,
    ):
        assert len(await listed(here, 3)) == 3
        assert here.events.named("tools.source_cut")[0]["max_tools"] == 3


async def test_a_withheld_secret_is_denied_like_that_of_any_other_tool():
    class Withholding:
        def value(self, name, tool_id, url):
            raise SecretWithheld(f"the secret `{name}` is not for the target's host")

    given = SourceSettings.model_validate(
        {"url": "https://elsewhere.example/mcp", "secrets": [{"name": "key"}]}
    )
    executor = McpToolExecutor({"outside": given}, Withholding(), RecordedEvents())
    called = definition(tool_id="outside.t", executor="mcp", target="outside:t")
    outcome = await executor.execute(Execution(called, {}, {}, "c-1", Deadline.after(5), "k", 1))
    assert (outcome.ok, outcome.error_kind, outcome.effect_possible) == (False, "denied", False)
    with pytest.raises(Unavailable, match="is not for the target's host"):
        await McpSource(
            "outside", given, executor, check_definition, RecordedEvents()
        ).definitions()


async def test_a_source_survives_a_defect_of_its_listing(database_url):
    class Breaking:
        refresh_s = 0.05
        asked = 0

        async def definitions(self):
            self.asked += 1
            if self.asked == 1:
                raise RuntimeError("a defect")
            return [definition(tool_id="outside.late", executor="mcp", target="outside:late")]

    async with replica(database_url, sources=lambda _: {"outside": Breaking()}) as here:
        assert [entry.id for entry in await listed(here, 1)] == ["outside.late"]
        assert here.events.named("tools.source_defect")


async def test_a_row_that_cannot_be_read_does_not_hold_up_its_source(
    database_url, database_owner_url
):
    server = listing({"name": "one"}, {"name": "two"})
    async with await psycopg.AsyncConnection.connect(database_owner_url, autocommit=True) as owner:
        await owner.execute(
            "INSERT INTO tools (tool_id, version, enabled, origin, source, definition) "
            "VALUES ('outside.one', 1, true, 'source', 'outside', "
            '\'{"from": "a later version"}\')'
        )
    async with (
        served(server.streamable_http_app(), lifespan="on") as url,
        with_source(database_url, f"{url}/mcp") as here,
    ):
        assert [entry.id for entry in await listed(here, 1)] == ["outside.two"]
        assert here.events.named("tools.unreadable_definition")[0]["tool_id"] == "outside.one"
