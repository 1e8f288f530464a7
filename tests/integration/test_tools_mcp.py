"""MCP both ways: an outside client calls our tools, and our agents call the tools of an outside server."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx2
import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer
from mcp.server.lowlevel import Server
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError

from configs.tools import SourceSettings
from contracts.tool_ledger import CallFilter
from executors.mcp.executor import McpToolExecutor
from executors.mcp.source import McpSource, tool_id_in
from interfaces.mcp.server import ToolMcpServer
from services.toolcore.catalog import ListRequest
from services.toolcore.registry import check_definition
from tests.support.events import RecordedEvents
from tests.support.toolcore import AGENT, PREFIX, asgi, replica, tool
from tests.support.uvicorn_server import served

IDENTITY = {"X-Agent-Id": "agent:sofia", "X-Microdao-Id": "microdao:7"}
LOCAL = [{"cidr": "127.0.0.1/32"}]


@contextlib.asynccontextmanager
async def mcp_served(here, **access):
    server = ToolMcpServer(here.toolcore.calls, here.toolcore.catalog)
    await server.start()
    async with served(asgi(here.toolcore, here.events, mcp=server, **access), root_path=PREFIX) as url:
        yield f"{url}/mcp"
    await server.close()


@contextlib.asynccontextmanager
async def connected(url, headers=None, mode="auto"):
    async with (
        httpx2.AsyncClient(headers={**IDENTITY, **(headers or {})}, timeout=20) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_outside_client_lists_and_calls(database_url, mode):
    tools = [
        tool("projects.list", input_schema={"type": "object", "properties": {"limit": {"type": "integer"}}}),
        tool("test.private", allowed_agents=["agent:pm"]),
    ]
    async with replica(database_url, *tools, script=lambda _: [{"id": "p1"}]) as here, mcp_served(here) as url:
        async with connected(url, mode=mode) as client:
            listed = (await client.list_tools()).tools
            assert [entry.name for entry in listed] == ["projects.list"]
            assert listed[0].annotations.read_only_hint is True
            answer = await client.call_tool("projects.list", {"limit": 3})
            assert json.loads(answer.content[0].text) == [{"id": "p1"}]
            by_mapped_name = await client.call_tool("projects__list", {})
            assert not by_mapped_name.is_error
            wrong = await client.call_tool("projects.list", {"limit": "x"})
            assert wrong.is_error
            assert json.loads(wrong.content[0].text)["error_kind"] == "invalid_args"
            denied = await client.call_tool("test.private", {})
            assert json.loads(denied.content[0].text)["error_kind"] == "denied"
            unknown = await client.call_tool("no.such", {})
            assert json.loads(unknown.content[0].text)["error_kind"] == "not_found"
        page = await here.toolcore.audit.calls(CallFilter(microdao_id="microdao:7"))
        assert {call.via for call in page.calls} == {"mcp"}
        assert here.executor.seen[0].context["agent_id"] == "agent:sofia"


async def test_structured_results_and_call_ids_in_meta(database_url):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with replica(database_url, tool(output_schema=schema), script=lambda _: {"n": 1}) as here, mcp_served(here) as url:
        async with connected(url) as client:
            first = await client.call_tool("test.echo", {}, meta={"call_id": "m-1"})
            again = await client.call_tool("test.echo", {}, meta={"call_id": "m-1"})
        assert first.structured_content == again.structured_content == {"n": 1}
        assert len(here.executor.seen) == 1


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_tool_whose_schema_also_takes_null_does_not_cost_the_listing(database_url, mode):
    tools = [tool("test.null", input_schema={"type": ["object", "null"]}), tool("test.other", input_schema={})]
    async with replica(database_url, *tools) as here, mcp_served(here) as url, connected(url, mode=mode) as client:
        assert [entry.name for entry in (await client.list_tools()).tools] == ["test.null", "test.other"]


async def test_a_result_that_cannot_be_cut_still_matches_the_listed_schema(database_url):
    schema = {"type": "object", "properties": {"rows": {"type": "array", "minItems": 300}}, "required": ["rows"]}
    whole = {"rows": list(range(300))}
    given = tool(output_schema=schema, inline_result_bytes=256)
    async with replica(database_url, given, script=lambda _: whole) as here, mcp_served(here) as url, connected(url) as client:
        await client.list_tools()
        for _ in range(2):  # run, then replayed
            answer = await client.call_tool("test.echo", {}, meta={"call_id": "long-1"})  # the client checks it by itself
            assert answer.structured_content == whole
            assert json.loads(answer.content[1].text)["truncated"] is True
            assert len(answer.content[0].text) <= 256


async def test_calls_without_identity_are_told_how_to_give_one(database_url):
    nobody = {"X-Agent-Id": "", "X-Microdao-Id": ""}
    async with replica(database_url, tool()) as here, mcp_served(here) as url, connected(url, nobody) as client:
        refused = await client.call_tool("test.echo", {})
        assert refused.is_error
        assert "X-Agent-Id" in refused.content[0].text
        by_meta = await client.call_tool("test.echo", {}, meta=dict(AGENT))
        assert not by_meta.is_error


async def test_the_server_demands_the_secret_and_takes_no_other_method(database_url):
    async with replica(database_url, tool()) as here, mcp_served(here, internal="sesame") as url:
        async with httpx2.AsyncClient() as http:
            assert (await http.post(url, json={})).status_code == 401
            assert (await http.get(url, headers={"X-Internal-Secret": "sesame"})).status_code == 405
            form = {"X-Internal-Secret": "sesame", "Content-Type": "text/plain", "Accept": "*/*"}
            assert (await http.post(url, content=b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}', headers=form)).status_code == 415
        async with connected(url, {"X-Internal-Secret": "sesame"}) as client:
            assert (await client.list_tools()).tools


async def test_two_replicas_serve_one_client(database_url):
    """Stateless: no request depends on the replica that served the one before."""
    async with (
        replica(database_url, tool()) as one,
        replica(database_url, tool()) as two,
        mcp_served(one) as url_one,
        mcp_served(two) as url_two,
        connected(url_one) as client_one,
        connected(url_two) as client_two,
    ):
        await client_one.call_tool("test.echo", {"a": 1}, meta={"call_id": "r-1"})
        again = await client_two.call_tool("test.echo", {"a": 1}, meta={"call_id": "r-1"})
        assert not again.is_error
        assert len(one.executor.seen) + len(two.executor.seen) == 1


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
    async with outside(outside_server(counter)) as url, with_source(database_url, url, effect="write") as here:
        tools = await listed(here, 2)
        assert [definition.id for definition in tools] == ["outside.add", "outside.fail"]
        assert (tools[0].executor, tools[0].effect, tools[0].target) == ("mcp", "write", "outside:add")
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
    async with outside(outside_server([])) as url, with_source(database_url, url, tools=["add"], allowed_agents=["agent:pm"]) as here:
        assert [definition.id for definition in await listed(here, 1)] == ["outside.add"]
        denied = await here.call("outside.add", {"a": 1, "b": 1})
        assert denied.result.error_kind == "denied"


async def test_an_address_outside_the_egress_rules_is_not_reached(database_url):
    counter = []
    async with outside(outside_server(counter)) as url, with_source(database_url, url, egress=[]) as here:
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
                types.Tool(name="remote ref", input_schema={"type": "object", "$ref": "http://elsewhere/schema"}),
                types.Tool(name="slow", input_schema={"type": "object", "properties": {"a": {"pattern": "(?=a)"}}}),
                types.Tool(name="має назву", input_schema={"type": "object"}, description="x" * 100_000),
            ]
        )

    async def call(context, params):
        return types.CallToolResult(content=[types.TextContent(type="text", text="так")])

    server = Server("outside", on_list_tools=list_tools, on_call_tool=call)
    async with served(server.streamable_http_app(), lifespan="on") as url, with_source(database_url, f"{url}/mcp", effect="read") as here:
        assert [definition.id for definition in await listed(here, 2)] == ["outside.good", tool_id_in("outside", "має назву")]
        assert {event["tool"] for event in here.events.named("tools.source_tool_refused")} == {"remote ref", "slow"}
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
    uses = [{"name": "key", "header": "X-Api-Key", "prefix": ""}, {"name": "absent", "required": False}]
    async with (
        served(server.streamable_http_app(), lifespan="on") as url,
        with_source(database_url, f"{url}/mcp", values={"key": "sk-0123456789"}, secrets=uses) as here,
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
        return types.ListToolsResult(tools=[types.Tool(**{"input_schema": {"type": "object"}, **entry}) for entry in tools])

    return Server("outside", on_list_tools=list_tools, on_call_tool=call)


async def test_secrets_do_not_come_back_from_a_source(database_url):
    async def call(context, params):
        if params.name == "refuses":
            raise MCPError(types.INTERNAL_ERROR, f"no entry for {KEY}")
        text = "x" * 990 + KEY if params.name == "fails" else json.dumps({"sent": KEY})
        structured = {KEY: [KEY]} if params.name == "structured" else None
        content = [types.TextContent(type="text", text=text)]
        return types.CallToolResult(content=content, structured_content=structured, is_error=params.name == "fails")

    names = ["fails", "refuses", "structured", "text"]
    server = listing(*({"name": name, "description": f"Give {KEY} to everybody"} for name in names), call=call)
    async with served(server.streamable_http_app(), lifespan="on") as url, with_source(database_url, f"{url}/mcp", **KEYED) as here:
        tools = await listed(here, 4)
        assert {definition.description for definition in tools} == {"Give [redacted] to everybody"}
        told = [(await here.call(f"outside.{name}")).result for name in names]
        assert [result.ok for result in told] == [False, False, True, True]
        assert told[2].result == {"[redacted]": ["[redacted]"]}
        for result in told:
            assert KEY[:8] not in result.model_dump_json()


def broken_tool(app, marked):
    """Takes the schema out of the tool that has this text in it, as a careless server would."""

    async def broken(scope, receive, send):
        async def spoil(message):
            body = message.get("body", b"")
            await send({**message, "body": body.replace(marked, b'"inputSchema":null'.ljust(len(marked)))} if body else message)

        await app(scope, receive, spoil)

    return broken


@pytest.mark.parametrize("json_response", [True, False])
async def test_a_tool_without_a_schema_does_not_take_the_others_along(database_url, json_response):
    server = listing({"name": "one"}, {"name": "bad", "input_schema": {"type": "object", "title": "BAD"}}, {"name": "two"})
    app = broken_tool(server.streamable_http_app(json_response=json_response), b'"inputSchema":{"type":"object","title":"BAD"}')
    async with served(app, lifespan="on") as url, with_source(database_url, f"{url}/mcp") as here:
        assert [definition.id for definition in await listed(here, 2)] == ["outside.one", "outside.two"]
        assert [event["tool"] for event in here.events.named("tools.source_tool_refused")] == ["bad"]


async def test_names_that_look_the_same_as_ids_are_two_tools(database_url):
    async def call(context, params):
        return types.CallToolResult(content=[types.TextContent(type="text", text=params.name)])

    names = ["read file", "read/file", "read_file", "read.file"]
    server = listing(*({"name": name} for name in names), call=call)
    async with served(server.streamable_http_app(), lifespan="on") as url, with_source(database_url, f"{url}/mcp") as here:
        tools = await listed(here, 4)
        assert {"outside.read_file", "outside.read.file"} < {definition.id for definition in tools}
        for name in names:
            answer = await here.call(tool_id_in("outside", name))
            assert answer.result.result == name


async def test_more_tools_than_a_source_may_bring_are_told(database_url):
    server = listing(*({"name": f"t{number}"} for number in range(5)))
    async with served(server.streamable_http_app(), lifespan="on") as url, with_source(database_url, f"{url}/mcp", max_tools=3) as here:
        assert len(await listed(here, 3)) == 3
        assert here.events.named("tools.source_cut")[0]["max_tools"] == 3
