"""Routes of administrators, the documented shapes, and changes that reach other replicas."""

from __future__ import annotations

import asyncio
import json

import pytest
from jsonschema import Draft202012Validator

from interfaces.http.graph.openapi import build_openapi
from tests.support.tools.routes import body
from tests.support.tools.toolcore import PREFIX, client, replica, tool
from tests.support.uvicorn_server import JSON


async def test_admin_routes_register_change_and_disable(served):
    _, http = served
    new = tool("test.new", description="first")
    created = await http.put("/test.new", json=new)
    assert (created.status_code, created.json()["version"]) == (201, 1)
    assert (await http.post("/call", json=body("test.new"))).status_code == 200
    changed = await http.put("/test.new", json={**new, "description": "second"})
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    same = await http.put("/test.new", json={**new, "description": "second"})
    assert same.json()["version"] == 2
    gone = await http.delete("/test.new")
    assert (gone.status_code, gone.json()["enabled"]) == (200, False)
    refused = await http.post("/call", json=body("test.new"))
    assert (refused.status_code, "no enabled tool" in refused.json()["error"]) == (404, True)
    shown = (await http.get("/test.new")).json()
    assert (shown["enabled"], shown["version"]) == (False, 3)
    back = await http.put("/test.new", json=shown)
    assert (back.status_code, back.json()["enabled"], back.json()["version"]) == (200, True, 4)
    assert (await http.post("/call", json=body("test.new"))).status_code == 200
    assert (await http.delete("/test.never")).status_code == 404


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_schema": {"$ref": "http://elsewhere/schema"}},
        {"input_schema": {"$ref": "#"}},
        {"input_schema": {"type": "strin"}},
        {"input_schema": {"type": "array"}},
        {"input_schema": {"properties": {"a": {"pattern": "(?=x)"}}}},
        {"output_schema": {"$ref": "#/nowhere"}},
        {"target": "http://user:pw@host/x"},
        {"target": "ftp://host/x"},
        {"target": "{nobase}/x"},
        {"executor": "python", "target": "os:system"},
        {"executor": "python", "target": "toolbox.text"},
        {"executor": "mcp", "target": "nobody:tool"},
        {"secrets": [{"name": "unknown"}]},
        {"secrets": [{"name": "own"}]},
        {"id": "other.id"},
        {"id": "calls"},
        {"effect": "maybe"},
        {"unknown": 1},
    ],
)
async def test_definitions_that_cannot_be_served_are_refused(served, wrong):
    _, http = served
    answer = await http.put(
        f"/{wrong['id'] if wrong.get('id') == 'calls' else 'test.wrong'}",
        json={**tool("test.wrong"), **wrong},
    )
    assert answer.status_code in (400, 405), answer.text
    assert answer.json()["error"]["message"]


async def test_a_wrong_method_names_the_methods_of_every_route_with_the_path(served):
    _, http = served
    answer = await http.patch("/test.any")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "DELETE, GET, PUT")
    assert answer.json()["error"]["message"].endswith("allowed: DELETE, GET, PUT")


async def test_a_tool_named_call_is_refused_in_the_general_shape(served):
    """Only `POST /call` answers in the body of a call."""
    _, http = served
    for content in ("no JSON", "{}"):
        answer = await http.put("/call", content=content, headers=JSON)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request")
        assert error["message"]


@pytest.mark.parametrize("number", ["NaN", "1e999", str(2**70), "[[" + str(-(2**64)) + "]]"])
async def test_numbers_that_no_store_can_hold_are_refused(served, number):
    _, http = served
    wrong = json.dumps(tool("test.wrong", input_schema={"type": "object", "default": "HERE"}))
    answer = await http.put("/test.wrong", content=wrong.replace('"HERE"', number), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request")
    assert "input_schema" in answer.json()["error"]["message"]


def documented(schema):
    """A validator of what the OpenAPI document says about a schema."""
    document = build_openapi({"tools": PREFIX})
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    )


async def test_answers_of_audit_and_calls_match_the_documentation(served):
    _, http = served
    answers = [
        await http.post("/call", json=body(**fields))
        for fields in [
            {"args": {"a": 1}},
            {"tool_id": "no.such"},
            {"tool_id": "test.private"},
            {"tool_id": "test.strict"},
            {"args": 1},
        ]
    ]
    for answer in answers:
        documented("ToolCallResult").validate(answer.json())
    page = (await http.get("/calls", params={"microdao_id": "microdao:7"})).json()
    assert {call["state"] for call in page["calls"]} == {"settled", "refused"}
    documented("CallPage").validate(page)


async def test_credentials(database_url):
    async with (
        replica(database_url, tool()) as here,
        client(here.toolcore, here.events, internal="i", admin="a") as http,
    ):
        assert (await http.get("")).status_code == 401
        internal, admin = {"X-Internal-Secret": "i"}, {"Authorization": "Bearer a"}
        assert (await http.post("/call", json=body(), headers=internal)).status_code == 200
        assert (await http.put("/test.x", json=tool("test.x"), headers=internal)).status_code == 403
        assert (await http.put("/test.x", json=tool("test.x"), headers=admin)).status_code == 201
        assert (await http.get("/approvals?microdao_id=m", headers=internal)).status_code == 403
        assert (await http.get("/health")).status_code == 200


async def test_a_change_reaches_another_replica_within_seconds(database_url):
    async with (
        replica(database_url, tool()) as one,
        replica(database_url, tool()) as two,
        client(one.toolcore, one.events) as http_one,
        client(two.toolcore, two.events) as http_two,
    ):
        await http_one.put("/test.fresh", json=tool("test.fresh"))
        async with asyncio.timeout(30):
            while (await http_two.post("/call", json=body("test.fresh"))).status_code == 404:
                await asyncio.sleep(0.05)
        await http_one.delete("/test.fresh")
        async with asyncio.timeout(30):
            while (await http_two.post("/call", json=body("test.fresh"))).status_code != 404:
                await asyncio.sleep(0.05)


async def test_a_tool_registered_just_now_is_found_by_a_replica_that_has_not_looked_yet(
    database_url,
):
    async with (
        replica(database_url, tool()) as one,
        replica(database_url, tool(), refresh_s=3_600) as two,
        client(one.toolcore, one.events) as http_one,
        client(two.toolcore, two.events) as http_two,
    ):
        await asyncio.sleep(0.15)
        await http_one.put("/test.fresh", json=tool("test.fresh"))
        assert (await http_two.post("/call", json=body("test.fresh"))).status_code == 200
        assert (await http_two.get("/test.fresh")).status_code == 200


async def test_an_administrators_definition_wins_over_the_file(database_url):
    async with (
        replica(database_url, tool(), tool("test.gone")) as here,
        client(here.toolcore, here.events) as http,
    ):
        await http.put("/test.echo", json=tool(description="by hand"))
    async with (
        replica(database_url, tool(description="by file")) as here,
        client(here.toolcore, here.events) as http,
    ):
        assert (await http.get("/test.echo")).json()["description"] == "by hand"
        assert (await http.get("/test.gone")).json()["enabled"] is False
