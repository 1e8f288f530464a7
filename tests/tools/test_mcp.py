"""The registry as an MCP server: an outside client lists and calls our tools."""

from __future__ import annotations

import contextlib
import json

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from contracts.tools.ledger import CallFilter
from interfaces.mcp.tools import ToolMcpServer
from services.tools.catalog import ListRequest
from tests.support.otlp import tracing_to
from tests.support.tools.toolcore import AGENT, PREFIX, asgi, replica, tool
from tests.support.uvicorn_server import served

IDENTITY = {"X-Agent-Id": "agent:sofia", "X-Microdao-Id": "microdao:7"}


@contextlib.asynccontextmanager
async def mcp_served(here, **access):
    server = ToolMcpServer(here.toolcore)
    await server.start()
    async with served(
        asgi(here.toolcore, here.events, mcp=server, **access), root_path=PREFIX
    ) as url:
        yield f"{url}/mcp"
    await server.close()


@contextlib.asynccontextmanager
async def connected(url, headers=None, mode="auto"):
    async with (
        httpx2.AsyncClient(headers={**IDENTITY, **(headers or {})}, timeout=20) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


async def test_a_call_continues_the_trace_of_its_meta_or_that_of_its_request(
    database_url, collector, monkeypatch
):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    meta = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    with tracing_to(collector, monkeypatch):
        async with (
            replica(database_url, tool()) as here,
            mcp_served(here) as url,
            connected(url) as client,
        ):
            await client.call_tool("test.echo", {}, meta=meta)
            await client.call_tool("test.echo", {})
    named, unnamed = sorted(collector.named("tools/call"), key=lambda span: span.start)
    assert (named.trace_id, named.parent) == (trace, "00f067aa0ba902b7")
    assert [span.name for span in collector.children(named)] == ["execute_tool test.echo"]
    (request,) = (span for span in collector.spans if span.span_id == unnamed.parent)
    assert request.kind == "SERVER"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_outside_client_lists_and_calls(database_url, mode):
    tools = [
        tool(
            "projects.list",
            input_schema={"type": "object", "properties": {"limit": {"type": "integer"}}},
        ),
        tool("test.private", allowed_agents=["agent:pm"]),
    ]
    async with (
        replica(database_url, *tools, script=lambda _: [{"id": "p1"}]) as here,
        mcp_served(here) as url,
    ):
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
    async with (
        replica(database_url, tool(output_schema=schema), script=lambda _: {"n": 1}) as here,
        mcp_served(here) as url,
    ):
        async with connected(url) as client:
            first = await client.call_tool("test.echo", {}, meta={"call_id": "m-1"})
            again = await client.call_tool("test.echo", {}, meta={"call_id": "m-1"})
        assert first.structured_content == again.structured_content == {"n": 1}
        assert len(here.executor.seen) == 1


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_tool_whose_schema_also_takes_null_does_not_cost_the_listing(database_url, mode):
    tools = [
        tool("test.null", input_schema={"type": ["object", "null"]}),
        tool("test.other", input_schema={}),
    ]
    async with (
        replica(database_url, *tools) as here,
        mcp_served(here) as url,
        connected(url, mode=mode) as client,
    ):
        assert [entry.name for entry in (await client.list_tools()).tools] == [
            "test.null",
            "test.other",
        ]


async def test_a_result_that_cannot_be_cut_still_matches_the_listed_schema(database_url):
    schema = {
        "type": "object",
        "properties": {"rows": {"type": "array", "minItems": 300}},
        "required": ["rows"],
    }
    whole = {"rows": list(range(300))}
    given = tool(output_schema=schema, inline_result_bytes=256)
    async with (
        replica(database_url, given, script=lambda _: whole) as here,
        mcp_served(here) as url,
        connected(url) as client,
    ):
        await client.list_tools()
        for _ in range(2):  # run, then replayed
            answer = await client.call_tool(
                "test.echo", {}, meta={"call_id": "long-1"}
            )  # the client checks it by itself
            assert answer.structured_content == whole
            assert json.loads(answer.content[1].text)["truncated"] is True
            assert len(answer.content[0].text) <= 256


async def test_a_result_too_long_to_be_sent_whole_is_an_error_that_says_where_it_is(database_url):
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string", "minLength": 300}},
        "required": ["text"],
    }
    given = tool(output_schema=schema, inline_result_bytes=256, max_result_bytes=4 << 20)
    whole = {"text": "ї" * (1 << 20)}
    async with (
        replica(database_url, given, script=lambda _: whole) as here,
        mcp_served(here) as url,
        connected(url) as client,
    ):
        await client.list_tools()
        answer = await client.call_tool("test.echo", {}, meta={"call_id": "long-2"})
        said = json.loads(answer.content[0].text)
    assert (answer.is_error, answer.structured_content, said["ok"]) == (True, None, True)
    assert said["result_ref"]["bytes"] > 2 << 20
    assert "result_ref" in said["error"]


async def test_a_long_result_without_a_listed_schema_is_not_sent_whole(database_url):
    given = tool(
        output_schema={"minProperties": 1, "properties": {"rows": {"minItems": 300}}},
        inline_result_bytes=256,
    )
    async with (
        replica(database_url, given, script=lambda _: {"rows": list(range(300))}) as here,
        mcp_served(here) as url,
        connected(url) as client,
    ):
        assert (await client.list_tools()).tools[0].output_schema is None
        answer = await client.call_tool("test.echo", {})
    assert (answer.is_error, answer.structured_content) == (False, None)
    assert json.loads(answer.content[1].text)["truncated"] is True


async def test_the_source_of_an_outside_tool_is_named_before_its_description(database_url):
    tools = [
        tool("outside.one", executor="mcp", target="outside:one", name="One", description="Obey."),
        tool("outside.two", executor="mcp", target="outside:two", name="Obey!", description=""),
        tool("test.ours", name="Ours", description="Lists."),
    ]
    expected = [
        "Described by an outside server (`outside`): Obey.",
        "Described by an outside server (`outside`): Obey!",
        "Lists.",
    ]
    async with (
        replica(database_url, *tools) as here,
        mcp_served(here) as url,
        connected(url) as client,
    ):
        assert [entry.description for entry in (await client.list_tools()).tools] == expected
        offered = here.toolcore.catalog().listing(ListRequest(format="openai"))["tools"]
        assert [entry["function"]["description"] for entry in offered] == expected


async def test_calls_without_identity_are_refused_with_how_to_give_one(database_url):
    nobody = {"X-Agent-Id": "", "X-Microdao-Id": ""}
    async with (
        replica(database_url, tool()) as here,
        mcp_served(here) as url,
        connected(url, nobody) as client,
    ):
        refused = await client.call_tool("test.echo", {})
        assert refused.is_error
        assert "give `agent_id` and `microdao_id`" in refused.content[0].text
        assert "X-Agent-Id" in refused.content[0].text
        by_meta = await client.call_tool("test.echo", {}, meta=dict(AGENT))
        assert not by_meta.is_error


async def test_the_server_demands_the_secret_and_takes_no_other_method(database_url):
    async with replica(database_url, tool()) as here, mcp_served(here, internal="sesame") as url:
        async with httpx2.AsyncClient() as http:
            assert (await http.post(url, json={})).status_code == 401
            assert (await http.get(url, headers={"X-Internal-Secret": "sesame"})).status_code == 405
            form = {"X-Internal-Secret": "sesame", "Content-Type": "text/plain", "Accept": "*/*"}
            assert (
                await http.post(
                    url, content=b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}', headers=form
                )
            ).status_code == 415
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
