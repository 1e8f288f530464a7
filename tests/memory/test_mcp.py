"""The memory as an MCP server: the official client over HTTP, under the keys of principals."""

from __future__ import annotations

import contextlib
import json

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from contracts.access.principals import Grants
from interfaces.mcp.memory import NOT_LISTED, TOOLS
from services.access.audit import AuditTrail
from tests.support.access import access_control
from tests.support.memory.application import BORYS, SOFIA, STRANGER, ingress, memory_application
from tests.support.uvicorn_server import served

PREFIX = "/internal/agent-memory"
KEYS = {name: f"dk_{name}".ljust(46, "x") for name in ("sofia", "many")}
PRINCIPALS = {
    "sofia": Grants(agents=["agent:sofia"], microdaos=["microdao:7"]),
    "many": Grants(agents=["agent:*"], microdaos=["microdao:7", "microdao:8"]),
}
SHORTAGE = {"microdaos": {"microdao:7": {"memories": 1}}}


@contextlib.asynccontextmanager
async def memory_server(database_url, tmp_path, embedder, events, quotas=None, audit=None):
    """Yields the application and the URL of its MCP server."""
    access = access_control(
        "internal-secret",
        principals=PRINCIPALS,
        keys={key: name for name, key in KEYS.items()},
        audit=audit,
    )
    async with (
        memory_application(database_url, tmp_path, embedder, events, quotas=quotas) as memory,
        served(ingress(memory.runtime, events, access), root_path=PREFIX) as url,
    ):
        yield memory, f"{url}/mcp"


@pytest.fixture
async def server(database_url, tmp_path, embedder, events):
    async with memory_server(database_url, tmp_path, embedder, events) as found:
        yield found


@contextlib.asynccontextmanager
async def connected(url, key="sofia", mode="auto", **headers):
    credential = {"Authorization": f"Bearer {KEYS[key]}", **headers}
    async with (
        httpx2.AsyncClient(headers=credential, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


async def succeeded(client, name, sent_meta=None, **arguments):
    answer = await client.call_tool(name, arguments, meta=sent_meta)
    assert not answer.is_error, answer.content[0].text
    assert json.loads(answer.content[0].text) == answer.structured_content
    return answer.structured_content


async def refused(client, name, sent_meta=None, **arguments):
    answer = await client.call_tool(name, arguments, meta=sent_meta)
    assert answer.is_error, answer.content[0].text
    assert answer.structured_content is None
    error = json.loads(answer.content[0].text)["error"]
    assert error["request_id"]
    return error


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_key_of_one_agent_stores_recalls_lists_and_forgets(server, mode):
    memory, url = server
    await memory.store("Чужі збори у п'ятницю", BORYS)
    async with connected(url, mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == list(TOOLS)
        stored = await succeeded(
            client,
            "store",
            content="Збори перенесли на четвер",
            kind="conversation",
            channel_id="channel:1",
            meta={"message_id": "m-17"},
            created_at="2026-05-01T10:00:00Z",
        )
        again = await succeeded(
            client,
            "store",
            content={"text": "Збори перенесли на четвер"},
            kind="conversation",
            channel_id="channel:1",
            meta={"message_id": "m-17"},
        )
        assert (again["id"], again["duplicate"]) == (stored["id"], True)
        task = await succeeded(client, "store", content="Купити каву", kind="task")
        (found,) = (await succeeded(client, "recall", query="коли збори?", kinds=["conversation"]))[
            "items"
        ]
        assert (found["id"], found["content"]) == (stored["id"], "Збори перенесли на четвер")
        assert found["meta"]["message_id"] == "m-17"
        assert found["meta"]["timestamp"] == "2026-05-01T10:00:00+00:00"
        first = await succeeded(client, "list", limit=1)
        assert [item["id"] for item in first["items"]] == [task["id"]]
        second = await succeeded(client, "list", limit=1, cursor=first["next_cursor"])
        assert [item["id"] for item in second["items"]] == [stored["id"]]
        assert "next_cursor" not in second
        assert await succeeded(client, "forget", id=task["id"]) == {"ok": True, "id": task["id"]}
        assert (await refused(client, "forget", id=task["id"]))["type"] == "not_found"
        assert len((await succeeded(client, "list"))["items"]) == 1
    assert await memory.contents("збори", BORYS) == ["Чужі збори у п'ятницю"]


async def test_tools_take_the_fields_of_their_routes_and_say_what_they_change(server):
    _, url = server
    async with connected(url) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    for name, tool in TOOLS.items():
        schema = listed[name].input_schema
        assert schema["properties"].keys() == tool.request.model_fields.keys() - NOT_LISTED
        assert {"agent_id", "microdao_id"} & set(schema["required"]) == set()
        assert schema["additionalProperties"] is False
        assert listed[name].output_schema["type"] == "object"
    hints = {name: tool.annotations for name, tool in listed.items()}
    assert [name for name in TOOLS if hints[name].read_only_hint] == ["recall", "list"]
    assert [name for name in TOOLS if hints[name].destructive_hint] == ["forget"]


NAMED = {
    "arguments": ({}, None, lambda tenant: tenant),
    "headers": (
        {"X-Agent-Id": "agent_id", "X-Microdao-Id": "microdao_id"},
        None,
        lambda _: {},
    ),
    "meta": ({}, lambda tenant: tenant, lambda _: {}),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("way", NAMED)
async def test_a_foreign_agent_is_refused_however_it_is_named(server, tool, way):
    memory, url = server
    headers, meta, arguments = NAMED[way]
    own = (await memory.store("Збори у п'ятницю", BORYS))["id"]
    given = {
        "store": {"content": "Підроблене", "kind": "task"},
        "recall": {"query": "збори"},
        "list": {},
        "forget": {"id": own},
    }[tool]
    for tenant in (BORYS, STRANGER):
        named = {header: tenant[name] for header, name in headers.items()}
        async with connected(url, **named) as client:
            error = await refused(
                client, tool, sent_meta=meta and meta(tenant), **given, **arguments(tenant)
            )
            assert error["type"] == "forbidden"
            assert "/internal/access/me" in error["message"]
    assert await memory.contents("збори", BORYS, limit=10) == ["Збори у п'ятницю"]


@pytest.mark.parametrize("way", NAMED)
async def test_a_key_for_several_names_one_of_them(server, way):
    memory, url = server
    headers, meta, arguments = NAMED[way]
    for tenant in (SOFIA, STRANGER):
        named = {header: tenant[name] for header, name in headers.items()}
        async with connected(url, key="many", **named) as client:
            stored = await succeeded(
                client,
                "store",
                sent_meta=meta and meta(tenant),
                content=f"Кава для {tenant['microdao_id']}",
                kind="task",
                **arguments(tenant),
            )
        assert [item["id"] for item in (await memory.query("кава", tenant))["items"]] == [
            stored["id"]
        ]
    async with connected(url, key="many") as client:
        error = await refused(client, "recall", query="кава")
        assert error["type"] == "invalid_request"
        for name in ("agent_id", "microdao_id", "X-Agent-Id", "X-Microdao-Id"):
            assert name in error["message"]


async def test_refusals_are_noted_in_the_audit_trail(
    database_url, tmp_path, embedder, events, monkeypatch
):
    noted = []
    trail = AuditTrail(None, events, lambda: None)
    monkeypatch.setattr(trail, "note", noted.append)
    async with (
        memory_server(database_url, tmp_path, embedder, events, audit=trail) as (_, url),
        connected(url) as client,
    ):
        await refused(client, "list", **STRANGER)
    assert [(row.principal, row.object, row.outcome, row.microdao_id) for row in noted] == [
        ("sofia", "agent-memory/mcp", "denied", "microdao:8")
    ]


WRONG = {
    "no query": ("recall", {}, "query: required"),
    "blank query": ("recall", {"query": "  "}, "query: must not be blank"),
    "too many": ("recall", {"query": "x", "limit": 101}, "limit: "),
    "unknown field": ("recall", {"query": "x", "top_k": 3}, "top_k: unknown field"),
    "unknown kind": ("store", {"content": "x", "kind": "note"}, "kind: "),
    "no kind": ("store", {"content": "x"}, "kind: required"),
    "no text": ("store", {"content": {"n": 1}, "kind": "task"}, "content: holds no text"),
    "blank text": ("store", {"content": " ", "kind": "task"}, "content: holds no text"),
    "long text": ("store", {"content": "а" * 400_001, "kind": "task"}, "content: is over 400000"),
    "nul": ("store", {"content": "а\0б", "kind": "task"}, "content: must not hold NUL"),
    "no zone": ("list", {"since": "2026-05-01T10:00:00"}, "since: "),
    "another cursor": ("list", {"cursor": "x"}, "cursor is not one"),
    "no id": ("forget", {}, "id: required"),
    "number as id": ("forget", {"id": 7}, "id: "),
    "number as agent": ("list", {"agent_id": 7}, "agent_id: "),
    "unknown tool": ("remember", {}, "store, recall, list, forget"),
}


async def test_bad_arguments_say_what_to_change(server):
    _, url = server
    async with connected(url) as client:
        for case, (tool, arguments, says) in WRONG.items():
            error = await refused(client, tool, **arguments)
            assert says in error["message"], (case, error)
            assert error["retryable"] is False, case
            assert error["type"] in {"invalid_request", "not_found"}, case


async def test_null_counts_as_left_out(server):
    _, url = server
    async with connected(url) as client:
        nothing = dict.fromkeys(("agent_id", "microdao_id", "channel_id", "since", "limit"))
        await succeeded(
            client, "store", content="Кава", kind="task", channel_id=None, meta=None, agent_id=None
        )
        assert len((await succeeded(client, "recall", query="кава", **nothing))["items"]) == 1
        assert len((await succeeded(client, "list", cursor=None, **nothing))["items"]) == 1


async def test_an_answer_that_is_too_long_is_refused_with_what_to_ask_instead(server):
    memory, url = server
    for number in range(3):
        await memory.store(f"{number}" + "а" * 399_000, wait=0)
    async with connected(url) as client:
        error = await refused(client, "list")
        assert "`limit`" in error["message"]
        assert len((await succeeded(client, "list", limit=2))["items"]) == 2
        # A search shows parts of long memories, so it is short in any case.
        found = await succeeded(client, "recall", query="а", limit=100)
        assert len(json.dumps(found, ensure_ascii=False)) < 10_000


async def test_what_the_use_cases_refuse_arrives_in_their_words(
    database_url, tmp_path, embedder, events
):
    async with (
        memory_server(database_url, tmp_path, embedder, events, quotas=SHORTAGE) as (_, url),
        connected(url) as client,
    ):
        await succeeded(client, "store", content="Перше", kind="task")
        error = await refused(client, "store", content="Друге", kind="task")
    assert (error["type"], error["details"]["limit"]) == ("over_limit", "microdao.memories")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_defect_is_an_event_and_its_text_stays_inside(server, events, monkeypatch, mode):
    memory, url = server

    async def broken(*_args):
        raise RuntimeError("the secret text")

    monkeypatch.setattr(type(memory.runtime.cases.records), "page", broken)
    async with connected(url, mode=mode) as client:
        error = await refused(client, "list")
    assert error["type"] == "internal"
    assert "secret" not in json.dumps(error)
    (defect,) = events.named("http.defect")
    assert defect["request_id"] == error["request_id"]
    assert (defect["path"], defect["error"]) == (f"{PREFIX}/mcp", "RuntimeError")


async def test_the_server_takes_only_json_posts_of_a_bounded_size_under_a_key(server):
    _, url = server
    key = {"Authorization": f"Bearer {KEYS['sofia']}"}
    accepted = {
        **key,
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    async with httpx2.AsyncClient() as http:
        assert (await http.post(url, json={})).status_code == 401
        assert (await http.get(url, headers=key)).status_code == 405
        form = {**accepted, "Content-Type": "text/plain"}
        assert (await http.post(url, content=b"{}", headers=form)).status_code == 415
        long = b'{"jsonrpc": "2.0", "id": 1, "method": "' + b"a" * (4 << 20) + b'"}'
        assert (await http.post(url, content=long, headers=accepted)).status_code == 413
