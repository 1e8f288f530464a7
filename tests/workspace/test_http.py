"""The workspace's routes over a real PostgreSQL: projects, follow-ups, and the endpoints behind the
two tools.
"""

import asyncio
import uuid

import httpx
import psycopg
import pytest

from executors.http.answers import describe, error_kind
from interfaces.http.graph.openapi import build_openapi
from tests.support.uvicorn_server import JSON
from tests.support.workspace.application import workspace

OWN, OTHER = "microdao:7", "microdao:8"


@pytest.fixture
async def http(database_url, events):
    async with (
        workspace(database_url, events) as replica,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(replica.app), base_url="http://localhost", headers=JSON
        ) as client,
    ):
        yield client


async def make(http, name="Сонячна громада", microdao_id=OWN, **fields):
    answer = await http.post("/projects", json={"name": name, "microdao_id": microdao_id, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def call(args=None, *, microdao_id=OWN, call_id="c-1", **context):
    return {
        "args": args or {},
        "context": {
            "agent_id": "agent:sofia",
            "microdao_id": microdao_id,
            "call_id": call_id,
            **context,
        },
    }


async def test_projects_are_created_and_listed_newest_first_per_microdao(http):
    made = [await make(http, f"Проєкт {number}") for number in range(3)]
    await make(http, "чужий", OTHER)
    assert made[0]["status"] == "active"
    assert uuid.UUID(made[0]["id"])
    page = (await http.get("/projects", params={"microdao_id": OWN})).json()
    assert [project["name"] for project in page["items"]] == ["Проєкт 2", "Проєкт 1", "Проєкт 0"]
    assert "next_cursor" not in page
    assert len((await http.get("/projects/", params={"microdao_id": OTHER})).json()["items"]) == 1
    assert (await http.get("/projects", params={"microdao_id": "microdao:none"})).json() == {
        "items": []
    }


async def test_pages_neither_skip_nor_repeat(http):
    names = [f"p{number:02}" for number in range(23)]
    for name in names:
        await make(http, name, status="paused" if name == "p05" else "active")
    seen, cursor = [], None
    while True:
        params = {
            "microdao_id": OWN,
            "limit": 5,
            "status": "active",
            **({"cursor": cursor} if cursor else {}),
        }
        page = (await http.get("/projects", params=params)).json()
        seen += [project["name"] for project in page["items"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
        assert len(page["items"]) == 5
    assert seen == [name for name in reversed(names) if name != "p05"]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"microdao_id": ""},
        {"microdao_id": OWN, "limit": "0"},
        {"microdao_id": OWN, "limit": "201"},
        {"microdao_id": OWN, "cursor": "x"},
        {"microdao_id": OWN, "cursor": "W10="},
        {"microdao_id": OWN, "status": "new"},
        {"microdao_id": OWN, "unknown": "1"},
    ],
)
async def test_wrong_queries_are_400(http, params):
    for path in ("/projects", "/follow-ups"):
        answer = await http.get(path, params=params)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request"


async def test_a_cursor_belongs_to_its_query(http):
    for number in range(3):
        await make(http, str(number))
    cursor = (await http.get("/projects", params={"microdao_id": OWN, "limit": 1})).json()[
        "next_cursor"
    ]
    for other in ({"microdao_id": OTHER}, {"microdao_id": OWN, "status": "done"}):
        assert (await http.get("/projects", params={**other, "cursor": cursor})).status_code == 400
    assert (
        await http.get("/follow-ups", params={"microdao_id": OWN, "cursor": cursor})
    ).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"name": "x"}',
        b'{"microdao_id": "m"}',
        b'{"name": "  ", "microdao_id": "m"}',
        b'{"name": "a\\u0000", "microdao_id": "m"}',
        b'{"name": "\\ud800", "microdao_id": "m"}',
        b'{"name": "x", "microdao_id": "m", "status": "new"}',
        b'{"name": "x", "microdao_id": "m", "id": "1"}',
        b'{"name": "' + b"x" * 301 + b'", "microdao_id": "m"}',
    ],
)
async def test_wrong_projects_are_400(http, body):
    answer = await http.post("/projects", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["retryable"] is False


async def test_large_bodies_are_413(http):
    body = {"name": "x", "microdao_id": OWN, "description": "x" * (300 << 10)}
    assert (await http.post("/projects", json=body)).status_code == 413


async def test_the_tool_projects_list_answers_an_array_for_the_contexts_microdao(http):
    made = await make(http, "Сад", description="Яблуні")
    await make(http, "Поле", status="done")
    await make(http, "чужий", OTHER)
    answer = await http.post("/tools/projects.list", json=call())
    assert answer.status_code == 200
    assert [project["name"] for project in answer.json()] == ["Поле", "Сад"]
    assert answer.json()[1] == {
        key: made[key] for key in ("id", "name", "status", "description", "created_at")
    }
    done = await http.post(
        "/tools/projects.list", json=call({"status": "done", "limit": 1, "microdao_id": OWN})
    )
    assert [project["name"] for project in done.json()] == ["Поле"]


@pytest.mark.parametrize("tool", ["projects.list", "followups.create"])
async def test_another_microdao_in_the_arguments_is_403(http, tool):
    args = {"microdao_id": OTHER, **({"title": "x"} if tool == "followups.create" else {})}
    answer = await http.post(f"/tools/{tool}", json=call(args))
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "forbidden"


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"title": ""},
        {"title": 1},
        {"title": "x", "due_date": "tomorrow"},
        {"title": "x", "project_id": "7"},
        {"title": "x", "more": 1},
    ],
)
async def test_wrong_arguments_are_400_with_the_field(http, args):
    answer = await http.post("/tools/followups.create", json=call(args))
    assert answer.status_code == 400
    assert answer.json()["error"]["details"]["mistakes"][0]["field"] in {
        "title",
        "due_date",
        "project_id",
        "more",
    }


async def test_a_follow_up_is_created_and_listed(http):
    project = await make(http)
    args = {
        "title": "Подзвонити",
        "project_id": project["id"],
        "assignee": "user:olena",
        "due_date": "2026-12-01",
        "description": "про воду",
    }
    created = (await http.post("/tools/followups.create", json=call(args))).json()
    assert {**args, "status": "open", "created_by": "agent:sofia"}.items() <= created.items()
    listed = (
        await http.get(
            "/follow-ups",
            params={"microdao_id": OWN, "project_id": project["id"], "assignee": "user:olena"},
        )
    ).json()
    assert [{key: item[key] for key in created} for item in listed["items"]] == [created]
    assert (await http.get("/follow-ups", params={"microdao_id": OTHER})).json()["items"] == []


async def test_one_key_makes_one_follow_up_whatever_happens_at_once(http):
    answers = await asyncio.gather(
        *(http.post("/tools/followups.create", json=call({"title": "Раз"})) for _ in range(24))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len((await http.get("/follow-ups", params={"microdao_id": OWN})).json()["items"]) == 1


async def test_the_header_wins_over_the_call_id_and_one_of_them_is_needed(http):
    headers = {"Idempotency-Key": "microdao:7/c-1"}
    first = await http.post(
        "/tools/followups.create", json=call({"title": "x"}, call_id="a"), headers=headers
    )
    again = await http.post(
        "/tools/followups.create", json=call({"title": "x"}, call_id="b"), headers=headers
    )
    assert first.json() == again.json()
    none = call({"title": "x"})
    del none["context"]["call_id"]
    assert (await http.post("/tools/followups.create", json=none)).status_code == 400
    long = {"Idempotency-Key": "k" * 1_025}
    assert (await http.post("/tools/followups.create", json=none, headers=long)).status_code == 400


async def test_a_key_used_for_something_else_is_409_and_belongs_to_its_microdao(http):
    assert (
        await http.post("/tools/followups.create", json=call({"title": "x"}))
    ).status_code == 200
    assert (
        await http.post("/tools/followups.create", json=call({"title": "y"}))
    ).status_code == 409
    assert (
        await http.post("/tools/followups.create", json=call({"title": "x"}, agent_id="agent:pm"))
    ).status_code == 409
    assert (
        await http.post("/tools/followups.create", json=call({"title": "y"}, microdao_id=OTHER))
    ).status_code == 200


async def test_a_project_of_another_microdao_is_404(http):
    foreign = await make(http, microdao_id=OTHER)
    for project_id in (foreign["id"], str(uuid.uuid4())):
        answer = await http.post(
            "/tools/followups.create", json=call({"title": "x", "project_id": project_id})
        )
        assert answer.status_code == 404
    assert (await http.get("/follow-ups", params={"microdao_id": OWN})).json()["items"] == []


async def test_row_security_applies_to_every_query(http, database_url):
    await make(http)
    await http.post("/tools/followups.create", json=call({"title": "x"}))
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        for table in ("projects", "follow_ups"):
            assert (
                await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()
            ) == (0,)
            await connection.execute("SELECT set_config('daarion.microdao_id', %s, true)", (OTHER,))
            assert (
                await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()
            ) == (0,)
            await connection.execute("SELECT set_config('daarion.microdao_id', %s, true)", (OWN,))
            assert (
                await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()
            ) == (1,)
            await connection.rollback()
        await connection.execute("SELECT set_config('daarion.microdao_id', %s, true)", (OTHER,))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(
                "INSERT INTO projects (id, microdao_id, name, status) "
                "VALUES (gen_random_uuid(), %s, 'x', 'active')",
                (OWN,),
            )


async def test_health_and_documentation(http):
    assert (await http.get("/health")).status_code == 200
    document = build_openapi({"workspace": "/internal/messaging"})
    paths = (
        "projects",
        "follow-ups",
        "tools/projects.list",
        "channels/{channel_id}/events",
        "agents/{agent_id}/post-to-channel",
    )
    assert {f"/internal/messaging/{path}" for path in paths} <= set(document["paths"])
    assert "#/components/schemas/Message" in str(
        document["paths"]["/internal/messaging/channels/{channel_id}/messages"]["post"]
    )


def test_the_http_executor_understands_the_refusals():
    """Refusals of the tool endpoints keep their meaning on the way back to the agent."""
    body = (
        b'{"error": {"type": "forbidden", "message": "`microdao_id` is not the caller\'s own", '
        b'"retryable": false, "request_id": "r"}}'
    )
    assert error_kind(403) == "denied"
    assert describe(403, body, str).endswith("`microdao_id` is not the caller's own")
