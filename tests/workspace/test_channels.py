"""Channels, members and messages over a real PostgreSQL: order, pages, membership, once-only posts,
tenants, bad input.
"""

import asyncio
import uuid
from datetime import datetime

import httpx
import psycopg
import pytest

from contracts.workspace.messaging_service import MAX_MESSAGE_CHARS
from tests.support.uvicorn_server import JSON
from tests.support.workspace.application import workspace

OWN, OTHER = "microdao:7", "microdao:8"
OLENA, SOFIA = "user:olena", "agent:sofia"


@pytest.fixture
async def replica(database_url, events):
    async with workspace(database_url, events) as running:
        yield running


@pytest.fixture
async def http(replica):
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(replica.app), base_url="http://localhost", headers=JSON
    ) as client:
        yield client


async def make(http, *members, microdao_id=OWN, name="Загальний"):
    body = {"name": name, "microdao_id": microdao_id, "members": list(members) or [OLENA, SOFIA]}
    answer = await http.post("/channels", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def post(http, channel, text, sender=OLENA, headers=None, **fields):
    body = {"sender_id": sender, "text": text, **fields}
    return await http.post(f"/channels/{channel['id']}/messages", json=body, headers=headers or {})


async def read(http, channel, **params):
    answer = await http.get(f"/channels/{channel['id']}/messages", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_channel_is_created_found_and_listed(http):
    made = await make(http, OLENA, SOFIA, OLENA)
    assert (made["name"], made["microdao_id"], made["members"]) == (
        "Загальний",
        OWN,
        [OLENA, SOFIA],
    )
    assert (await http.get(f"/channels/{made['id']}")).json() == made
    await make(http, "user:petro", name="інший")
    await make(http, OLENA, microdao_id=OTHER)
    listed = (await http.get("/channels", params={"microdao_id": OWN})).json()["items"]
    assert [channel["name"] for channel in listed] == ["інший", "Загальний"]
    mine = (await http.get("/channels/", params={"microdao_id": OWN, "member_id": OLENA})).json()[
        "items"
    ]
    assert [channel["id"] for channel in mine] == [made["id"]]


@pytest.mark.parametrize("params", [{"microdao_id": OWN}, {}])
async def test_pages_of_channels_neither_skip_nor_repeat(http, params):
    made = [(await make(http, name=f"c{number}"))["id"] for number in range(7)]
    seen, cursor = [], None
    while True:
        page = (
            await http.get(
                "/channels", params={**params, "limit": 3, **({"cursor": cursor} if cursor else {})}
            )
        ).json()
        seen += [channel["id"] for channel in page["items"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    assert seen == made[::-1]


async def test_messages_are_listed_newest_first_and_by_page(http):
    channel = await make(http)
    sent = [(await post(http, channel, f"повідомлення {number}")).json() for number in range(9)]
    assert set(sent[0]) == {
        "id",
        "channel_id",
        "sender_id",
        "sender_type",
        "body",
        "content_preview",
        "created_at",
    }
    assert (sent[0]["sender_type"], sent[0]["body"], sent[0]["channel_id"]) == (
        "human",
        "повідомлення 0",
        channel["id"],
    )
    assert await read(http, channel) == sent[::-1]
    seen, before = [], {}
    while page := await read(http, channel, limit=4, **before):
        seen += page
        before = {"before": page[-1]["id"]}
    assert seen == sent[::-1]


async def test_times_are_distinct_and_in_order_however_many_post_at_once(http):
    channel = await make(http, OLENA, "user:petro", SOFIA)
    senders = [OLENA, "user:petro", SOFIA]
    answers = await asyncio.gather(
        *(post(http, channel, str(number), senders[number % 3]) for number in range(60))
    )
    assert {answer.status_code for answer in answers} == {201}
    listed = await read(http, channel, limit=200)
    times = [datetime.fromisoformat(message["created_at"]) for message in listed]
    assert len(set(times)) == 60
    assert times == sorted(times, reverse=True)


async def test_only_members_post(http):
    channel = await make(http, OLENA)
    refused = await post(http, channel, "я тут", "user:stranger")
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "forbidden")
    added = await http.post(
        f"/channels/{channel['id']}/members", json={"member_id": "user:stranger"}
    )
    assert (added.status_code, added.json()["members"]) == (201, [OLENA, "user:stranger"])
    assert (
        await http.post(f"/channels/{channel['id']}/members", json={"member_id": "user:stranger"})
    ).status_code == 200
    assert (await post(http, channel, "тепер так", "user:stranger")).status_code == 201
    removed = await http.delete(f"/channels/{channel['id']}/members/user:stranger")
    assert removed.json()["members"] == [OLENA]
    assert (await post(http, channel, "і знову ні", "user:stranger")).status_code == 403
    assert [message["body"] for message in await read(http, channel)] == ["тепер так"]


async def test_a_channel_takes_a_bounded_number_of_members(http):
    channel = await make(http, *(f"agent:{number}" for number in range(20)))
    assert (
        await http.post(f"/channels/{channel['id']}/members", json={"member_id": "agent:more"})
    ).status_code == 409
    assert (
        await http.post(f"/channels/{channel['id']}/members", json={"member_id": OLENA})
    ).status_code == 201
    for members in (
        [f"user:{number}" for number in range(201)],
        [f"agent:{number}" for number in range(21)],
    ):
        answer = await http.post(
            "/channels", json={"name": "x", "microdao_id": OWN, "members": members}
        )
        assert answer.status_code == 400


@pytest.mark.parametrize("by", ["body", "header"])
async def test_a_clients_own_id_makes_one_message_whatever_happens_at_once(http, replica, by):
    channel = await make(http)

    def once(text):
        named = {"message_id": "m-1"} if by == "body" else {"headers": {"Idempotency-Key": "m-1"}}
        return post(http, channel, text, **named)

    answers = await asyncio.gather(*(once("раз") for _ in range(16)))
    assert sorted(answer.status_code for answer in answers) == [200] * 15 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await read(http, channel)) == 1
    assert len(replica.notices.created_messages) == 1
    assert (await once("два")).status_code == 409
    elsewhere = await make(http)
    assert (await post(http, elsewhere, "інше", message_id="m-1")).status_code == 201


async def test_a_run_posts_once_and_its_second_text_is_the_first(http):
    channel = await make(http)
    path = f"/agents/{SOFIA}/post-to-channel"
    bodies = [
        {"channel_id": channel["id"], "text": f"спроба {number}", "run_id": "run-1"}
        for number in range(8)
    ]
    answers = await asyncio.gather(*(http.post(path, json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    (only,) = await read(http, channel)
    assert {answer.json()["body"] for answer in answers} == {only["body"]}
    assert (only["sender_id"], only["sender_type"], only["run_id"]) == (SOFIA, "agent", "run-1")


async def test_agents_post_by_query_too_and_the_key_counts(http):
    channel = await make(http)
    path = f"/agents/{SOFIA}/post-to-channel"
    params = {"channel_id": channel["id"], "text": "за адресою & з пробілом"}
    first = await http.post(path, params=params, headers={"Idempotency-Key": "k"})
    again = await http.post(path, params=params, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json()["body"] == "за адресою & з пробілом"
    other = await http.post(
        path, params={**params, "text": "інше"}, headers={"Idempotency-Key": "k"}
    )
    assert other.status_code == 409
    assert (await http.post("/agents/agent:pm/post-to-channel", json=params)).status_code == 403
    assert (await http.post("/agents/user:olena/post-to-channel", json=params)).status_code == 400
    assert (await http.post(path, params={"channel_id": channel["id"]})).status_code == 400


async def test_a_null_body_is_refused_whatever_the_query(http):
    channel = await make(http)
    for params in ({}, {"channel_id": channel["id"], "text": "з адреси"}):
        answer = await http.post(
            f"/agents/{SOFIA}/post-to-channel", params=params, content=b" null", headers=JSON
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request")
        assert error["message"] == "the body is null: send a JSON object"
    assert await read(http, channel) == []


async def test_unknown_channels_and_channels_of_others_are_404(http):
    foreign = await make(http, microdao_id=OTHER)
    for path in (
        f"/channels/{uuid.uuid4()}",
        "/channels/channel:main",
        f"/channels/{foreign['id']}?microdao_id={OWN}",
        f"/channels/{foreign['id']}/messages?microdao_id={OWN}",
        f"/channels/{foreign['id']}/events?microdao_id={OWN}",
        f"/channels/{foreign['id']}/invocations?microdao_id={OWN}",
    ):
        answer = await http.get(path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found"), path
    headers = {"X-Microdao-Id": OWN}
    assert (await http.get(f"/channels/{foreign['id']}", headers=headers)).status_code == 404
    assert (await post(http, foreign, "чуже", headers=headers)).status_code == 404
    body = {"channel_id": foreign["id"], "text": "чуже"}
    assert (
        await http.post(f"/agents/{SOFIA}/post-to-channel", json=body, headers=headers)
    ).status_code == 404
    assert (
        await http.post(
            f"/channels/{uuid.uuid4()}/messages", json={"sender_id": OLENA, "text": "x"}
        )
    ).status_code == 404
    assert await read(http, foreign, microdao_id=OTHER) == []


@pytest.mark.parametrize(
    "body",
    [
        {"sender_id": OLENA},
        {"sender_id": OLENA, "text": ""},
        {"sender_id": OLENA, "text": " \n "},
        {"sender_id": OLENA, "text": "a\0b"},
        {"sender_id": "", "text": "x"},
        {"sender_id": OLENA, "text": 7},
        {"sender_id": OLENA, "text": "x", "sender_type": "agent"},
        {"sender_id": OLENA, "text": "ї" * (MAX_MESSAGE_CHARS + 1)},
        {"sender_id": OLENA, "text": "x" * 100_000},
        {"sender_id": OLENA, "text": "x", "message_id": ""},
    ],
)
async def test_wrong_messages_are_400_and_not_stored(http, body):
    channel = await make(http)
    answer = await http.post(f"/channels/{channel['id']}/messages", json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request")
    assert len(answer.text) < 1_000
    assert await read(http, channel) == []


async def test_the_longest_message_is_stored_as_it_is(http):
    channel = await make(http)
    text = "ї" * (MAX_MESSAGE_CHARS - 1) + "🐝"
    sent = (await post(http, channel, text)).json()
    assert sent["body"] == text
    assert len(sent["content_preview"]) == 500
    too_large = await http.post(
        f"/channels/{channel['id']}/messages", content=b'{"text":"' + b"x" * (300 << 10) + b'"}'
    )
    assert (too_large.status_code, too_large.json()["error"]["message"]) == (
        413,
        "the body is over 256 KiB",
    )


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 201},
        {"limit": "x"},
        {"before": "x"},
        {"before": str(uuid.UUID(int=1))},
        {"page": 2},
    ],
)
async def test_wrong_queries_are_400(http, params):
    channel = await make(http)
    answer = await http.get(f"/channels/{channel['id']}/messages", params=params)
    assert answer.status_code == 400


async def test_the_channels_of_all_take_the_admin_secret(database_url, events):
    async with (
        workspace(database_url, events, secrets=("internal", "admin")) as replica,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(replica.app), base_url="http://localhost", headers=JSON
        ) as http,
    ):
        refused = await http.get("/channels", headers={"X-Internal-Secret": "internal"})
        assert (refused.status_code, "microdao_id" in refused.json()["error"]["message"]) == (
            403,
            True,
        )
        assert (
            await http.get("/channels", headers={"X-Internal-Secret": "admin"})
        ).status_code == 200
        assert (
            await http.get(
                "/channels", params={"microdao_id": OWN}, headers={"X-Internal-Secret": "internal"}
            )
        ).status_code == 200
        assert (await http.get("/channels", params={"microdao_id": OWN})).status_code == 401


async def test_row_security_applies_to_every_query(http, database_url):
    channel = await make(http)
    await post(http, channel, "таємниця")
    steps = {"agent_id": SOFIA, "run_id": "r", "steps": [{"index": 0, "kind": "context"}]}
    assert (await http.post(f"/channels/{channel['id']}/run-steps", json=steps)).json() == {
        "added": 1
    }
    tables = (
        "channels",
        "channel_members",
        "channel_messages",
        "channel_events",
        "invocation_outbox",
    )
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        for microdao_id, expected in (("", 0), (OTHER, 0), (OWN, 1)):
            await connection.execute(
                "SELECT set_config('daarion.microdao_id', %s, true)", (microdao_id,)
            )
            for table in tables:
                (count,) = await (
                    await connection.execute(f"SELECT count(*) FROM {table}")
                ).fetchone()
                assert min(count, 1) == expected, table
            await connection.rollback()
        await connection.execute("SELECT set_config('daarion.microdao_id', %s, true)", (OTHER,))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(
                "INSERT INTO channels (id, microdao_id, name) VALUES (gen_random_uuid(), %s, 'x')",
                (OWN,),
            )


@pytest.mark.parametrize(
    "body",
    [
        {"steps": []},
        {"steps": [{"index": 0, "kind": "thought"}]},
        {"steps": [{"index": 0, "kind": "llm"}, {"index": 0, "kind": "llm"}]},
        {"steps": [{"index": 0, "kind": "llm", "detail": {"text": {"deep": 1}}}]},
        {"steps": [{"index": 0, "kind": "llm", "detail": {"text": "x" * 257}}]},
        {"steps": [{"index": number, "kind": "llm"} for number in range(51)]},
    ],
)
async def test_wrong_steps_are_400(http, body):
    channel = await make(http)
    answer = await http.post(
        f"/channels/{channel['id']}/run-steps", json={"agent_id": SOFIA, "run_id": "r", **body}
    )
    assert answer.status_code == 400


async def test_steps_come_from_members(http):
    channel = await make(http, OLENA)
    body = {"agent_id": SOFIA, "run_id": "r", "steps": [{"index": 0, "kind": "llm"}]}
    assert (await http.post(f"/channels/{channel['id']}/run-steps", json=body)).status_code == 403
