"""Hostile and malformed requests are answered 4xx in the envelope of errors, never 500."""

import json

import httpx

from tests.support.memory.application import SOFIA, Memory

QUERY = {**SOFIA, "query": "що нового"}
STORE = {**SOFIA, "kind": "conversation", "content": {"text": "факт"}}
DEEP = '{"a":' * 100 + "1" + "}" * 100
BEFORE_TIME, AFTER_TIME = "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"

BAD_QUERIES = {
    "empty": {**QUERY, "query": ""},
    "blank": {**QUERY, "query": " \n\t"},
    "oversized": {**QUERY, "query": "а" * 8_001},
    "nul": {**QUERY, "query": "а\0б"},
    "limit 0": {**QUERY, "limit": 0},
    "limit negative": {**QUERY, "limit": -1},
    "limit too large": {**QUERY, "limit": 101},
    "limit text": {**QUERY, "limit": "п'ять"},
    "limit fraction": {**QUERY, "limit": 1.5},
    "unknown kind": {**QUERY, "kinds": ["rumour"]},
    "no kinds": {**QUERY, "kinds": []},
    "no agent": {"microdao_id": "microdao:7", "query": "що"},
    "empty agent": {**QUERY, "agent_id": ""},
    "empty microdao": {**QUERY, "microdao_id": ""},
    "nul in id": {**QUERY, "agent_id": "agent:\0"},
    "long id": {**QUERY, "agent_id": "a" * 257},
    "time without zone": {**QUERY, "since": "2026-01-01T00:00:00"},
    "since year 0": {**QUERY, "since": BEFORE_TIME},
    "until year 10000": {**QUERY, "until": AFTER_TIME},
    "unknown field": {**QUERY, "tenant": "microdao:8"},
    "array": [QUERY],
}
BAD_STORES = {
    "unknown kind": {**STORE, "kind": "rumour"},
    "empty content": {**STORE, "content": {}},
    "blank content": {**STORE, "content": {"text": "  "}},
    "content without text": {**STORE, "content": {"n": 1}},
    "content is a text": {**STORE, "content": "факт"},
    "oversized content": {**STORE, "content": {"text": "а" * 400_001}},
    "nul in content": {**STORE, "content": {"text": "а\0б"}},
    "nul in a key": {**STORE, "content": {"text": "а", "k\0": 1}},
    "nul in meta": {**STORE, "meta": {"k": "\0"}},
    "oversized meta": {**STORE, "meta": {"k": "а" * 32_001}},
    "deep meta": {**STORE, "meta": json.loads('{"a":' * 40 + "1" + "}" * 40)},
    "huge number": {**STORE, "meta": {"n": 10**30}},
    "meta is a list": {**STORE, "meta": []},
    "endless wait": {**STORE, "wait_indexed_s": 61},
    "negative wait": {**STORE, "wait_indexed_s": -1},
    "year 0 in UTC": {**STORE, "created_at": BEFORE_TIME},
    "year 10000 in UTC": {**STORE, "created_at": AFTER_TIME},
}


BAD_BODIES = {
    "empty": b"",
    "blank": b" ",
    "cut": b"{",
    "not utf-8": b"\xff\xfe{}",
    "text": b'"text"',
    "deep": DEEP.encode(),
    "not a number": b'{"query": NaN}',
    "lone surrogate": b'{"agent_id":"a","microdao_id":"m","query":"\\ud800"}',
}
BAD_LISTINGS = [
    "",
    "microdao_id=m",
    "agent_id=a",
    *(
        f"agent_id=a&microdao_id=m&{rest}"
        for rest in ("limit=0", "kind=x", "cursor=x", "cursor=WzEsMiwzXQ==", "other=1")
    ),
    "agent_id=a%00&microdao_id=m",
]
ODD_IDS = [
    "'; DROP TABLE memories; --",
    "%",
    "%s",
    "%(agent_id)s",
    "a\\b",
    '"',
    "агент:софія",
    "{}",
    "*",
    "a/b",
    "../x",
]


def refused(response: httpx.Response, status: int = 400, *, name: str = "") -> dict[str, object]:
    assert response.status_code == status, f"{name}: {response.text}"
    error = response.json()["error"]
    assert set(error) >= {"type", "message", "retryable", "request_id"}
    assert error["retryable"] is False
    return error


async def test_bad_queries(memory: Memory):
    for name, body in BAD_QUERIES.items():
        refused(await memory.post("/query", body), name=name)


async def test_bad_stores(memory: Memory):
    for name, body in BAD_STORES.items():
        refused(await memory.post("/store", body), name=name)
    for number in ("NaN", "Infinity", "1e999"):
        body = json.dumps({**STORE, "meta": {"n": "NUMBER"}}).replace('"NUMBER"', number)
        refused(await memory.client.post("/store", content=body.encode()), name=number)
    for key in ("", " ", "k" * 257):
        refused(
            await memory.post("/store", STORE, headers={"Idempotency-Key": key}),
            name=f"key {key[:5]!r}",
        )
    refused(
        await memory.client.post("/store", content=b'{"content": "' + b"a" * (4 << 20) + b'"}'), 413
    )
    assert (await memory.query("факт"))["items"] == []


async def test_bad_bodies(memory: Memory):
    for path in ("/query", "/store", "/summarize", "/erase", "/kb/reindex"):
        for name, body in BAD_BODIES.items():
            refused(await memory.client.post(path, content=body), name=f"{path}: {name}")
    for field in ("agent_id", "query", "channel_id"):
        refused(
            await memory.client.post(
                "/query", content=json.dumps({**QUERY, field: "\ud800"}).encode()
            ),
            name=field,
        )
    refused(
        await memory.client.post(
            "/store", content=json.dumps({**STORE, "content": {"text": "а\udfffб"}}).encode()
        )
    )


async def test_ids_are_only_ever_values(memory: Memory):
    await memory.store("Чужий факт")
    for identity in ODD_IDS:
        odd = {"agent_id": identity, "microdao_id": identity}
        await memory.store("Факт цього орендаря", odd, channel_id=identity, wait=5)
        assert await memory.contents("факт", odd, channel_id=identity) == ["Факт цього орендаря"], (
            identity
        )
        page = (await memory.client.get("/items", params={**odd, "channel_id": identity})).json()
        assert len(page["items"]) == 1, identity
    assert await memory.contents("факт") == ["Чужий факт"]


async def test_odd_queries_answer(memory: Memory):
    await memory.store("Факт")
    for query in (
        "%",
        "_",
        "'",
        "\\",
        "🙂",
        "а",
        ":*",
        "|&!()",
        "select 1",
        "ʼ",
        "\u200b x",
        "\u0301\u0301 а",
    ):
        assert "items" in await memory.query(query)


async def test_bad_listings_and_deletions(memory: Memory):
    for query in BAD_LISTINGS:
        refused(await memory.client.get(f"/items?{query}"), name=query)
    for item in ("mem-unknown", "%00", "%27%3B--", "a" * 300, "mem-%ED%A0%80"):
        refused(await memory.client.delete(f"/items/{item}", params=SOFIA), 404, name=item)


async def test_unknown_routes_and_methods(memory: Memory):
    refused(await memory.client.get("/nothing"), 404)
    refused(await memory.client.get("/query"), 405)
    assert (await memory.post("/query/", QUERY)).status_code == 200


async def test_a_mistake_has_one_message_in_words(memory: Memory):
    messages = {
        "kinds: give at least one kind, or leave it out for all": [],
        "kinds[0]: Input should be 'conversation', 'kb', 'task' or 'dao-event'": ["rumour"],
    }
    for message, kinds in messages.items():
        assert refused(await memory.post("/query", {**QUERY, "kinds": kinds}))["message"] == message


async def test_times_outside_of_the_years_1_to_9999_are_refused(
    memory: Memory,
):
    moments = (
        "0001-01-01T00:00:00Z",
        "0001-01-01T14:00:00+14:00",
        "9999-12-31T23:59:59.999999Z",
        "9999-12-31T09:59:59-14:00",
    )
    for number, moment in enumerate(moments):
        await memory.store(f"Запис {number} на краю часу", created_at=moment)
    for body in ({**STORE, "created_at": BEFORE_TIME}, {**STORE, "created_at": AFTER_TIME}):
        assert (
            refused(await memory.post("/store", body))["message"]
            == "created_at: must lie within the years 1 to 9999 in UTC"
        )
    for line in (BEFORE_TIME, AFTER_TIME):
        record = {
            "type": "memory",
            "id": "mem-1",
            "kind": "task",
            "content": {"text": "факт"},
            "created_at": line,
        }
        lines = json.dumps(record) + '\n{"type":"end","count":1}\n'
        refused(
            await memory.client.post("/import", params=SOFIA, content=lines.encode()), name=line
        )
    assert len(await memory.contents("запис на краю часу", limit=10)) == len(moments)
    page = (await memory.client.get("/items", params={**SOFIA, "limit": 3})).json()
    rest = (
        await memory.client.get(
            "/items", params={**SOFIA, "limit": 3, "cursor": page["next_cursor"]}
        )
    ).json()
    assert len(page["items"] + rest["items"]) == len(moments)
    exported = (await memory.client.get("/export", params=SOFIA)).text
    assert json.loads(exported.splitlines()[-1]) == {"type": "end", "count": len(moments)}
    again = await memory.client.post("/import", params=SOFIA, content=exported.encode())
    assert again.json() == {"ok": True, "imported": 0, "known": len(moments)}
