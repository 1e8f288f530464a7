"""Principals and keys by the routes below `/internal/access`, over real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb

from backends.access.principals import PostgresPrincipals
from backends.postgres.pool import Database
from contracts.access.keys import key_hash
from contracts.errors import Forbidden, Unauthorized
from services.access.directory import Directory
from tests.support.access import opened_access, served_keys
from tests.support.events import RecordedEvents

INTERNAL, ADMIN = "the internal secret", "the administrators' secret"
SOFIA = {"kind": "agent", "agents": ["agent:sofia"], "microdaos": ["microdao:7"]}
FIRST, SECOND = "principals/sofia-bot", "principals/sofia-bot/keys"


@dataclass
class Graph:
    """A graph of one replica. `other` is what another replica knows; it is read when asked."""

    client: httpx.AsyncClient
    replica: Directory
    other: Directory
    store: PostgresPrincipals

    async def call(self, method, path, body=None, *, key=ADMIN, status=None):
        answer = await self.client.request(
            method, path, json=body, headers={"X-Internal-Secret": key}
        )
        assert answer.status_code == (status or answer.status_code), answer.text
        return answer.json() if answer.content else None

    async def refused(self, status, method, path, body=None, *, key=ADMIN):
        return (await self.call(method, path, body, key=key, status=status))["error"]["message"]

    async def key(self, body=None, path=SECOND):
        return await self.call("POST", path, body or {}, status=201)

    async def sofia(self):
        await self.call("PUT", FIRST, SOFIA, status=201)


@pytest.fixture
async def graph(
    database_url: str, database: Database, events: RecordedEvents
) -> AsyncIterator[Graph]:
    store = PostgresPrincipals(database, events)
    async with (
        opened_access(database_url, events, INTERNAL, ADMIN) as access,
        served_keys(access, store, events) as url,
        httpx.AsyncClient(base_url=f"{url}/internal/access/") as client,
    ):
        other = Directory(store, events)
        await other.refresh()
        yield Graph(client, access.directory, other, store)


@pytest.fixture
async def owner(database_owner_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection that sees and changes every row, as an operator of the database does."""
    async with await psycopg.AsyncConnection.connect(
        database_owner_url, autocommit=True
    ) as connection:
        yield connection


async def test_a_principal_is_created_changed_listed_and_removed(graph):
    created = await graph.call("PUT", FIRST, SOFIA, status=201)
    assert (created["name"], created["origin"], created["keys"]) == ("sofia-bot", "api", [])
    assert created["grants"].items() >= SOFIA.items()
    assert await graph.call("PUT", FIRST, SOFIA, status=200) == created
    changed = await graph.call("PUT", FIRST, {**SOFIA, "models": ["gpt-*"]}, status=200)
    assert changed["grants"]["models"] == ["gpt-*"]
    assert changed["updated_at"] > created["updated_at"]
    assert await graph.call("GET", FIRST) == changed
    await graph.call("DELETE", FIRST, status=204)
    assert "GET /internal/access/principals" in await graph.refused(404, "GET", FIRST)
    await graph.refused(404, "DELETE", FIRST)
    await graph.refused(404, "POST", SECOND, {})


async def test_principals_are_paged_newest_first(graph):
    names = [f"bot-{number}" for number in range(5)]
    for name in names:
        await graph.call("PUT", f"principals/{name}", {}, status=201)
    seen, cursor = [], ""
    while cursor is not None:
        page = await graph.call("GET", f"principals?limit=2{cursor}")
        assert len(page["items"]) <= 2
        seen += [view["name"] for view in page["items"]]
        cursor = f"&cursor={page['next_cursor']}" if "next_cursor" in page else None
    assert seen == names[::-1]
    assert "cursor" in await graph.refused(400, "GET", "principals?cursor=aGVsbG8=")


async def test_a_key_is_shown_once_and_only_its_hash_is_stored(graph, owner):
    await graph.sofia()
    issued = await graph.key({"label": "on the web"})
    key = issued["key"]
    assert key.startswith("dk_")
    assert len(key) > 40
    listed = (await graph.call("GET", FIRST))["keys"]
    assert listed == [{name: issued[name] for name in ("id", "label", "hint", "created_at")}]
    assert key.startswith(listed[0]["hint"].rstrip("…"))
    rows = await (
        await owner.execute("SELECT to_jsonb(k)::text, key_hash FROM access_keys k")
    ).fetchall()
    assert [(key in text, hashed) for text, hashed in rows] == [(False, key_hash(key.encode()))]


async def test_a_key_says_what_it_opens_under_each_of_the_three_headers(graph):
    await graph.sofia()
    key = (await graph.key())["key"]
    await graph.replica.refresh()
    for name, value in (
        ("Authorization", f"Bearer {key}"),
        ("X-Internal-Secret", key),
        ("x-api-key", key),
    ):
        answer = await graph.client.get("me", headers={name: value})
        assert answer.status_code == 200, name
        me = answer.json()
        assert (me["name"], me["credential"]) == ("sofia-bot", "sofia-bot")
        assert me["grants"].items() >= SOFIA.items()
    built_in = await graph.call("GET", "me", key=INTERNAL)
    assert (built_in["name"], built_in["grants"]["agents"]) == ("internal", ["*"])
    assert built_in["credential"].startswith("key-")
    assert (await graph.call("GET", "me", key=ADMIN))["grants"]["kind"] == "operator"


async def test_only_operators_administer(graph):
    await graph.sofia()
    key = (await graph.key())["key"]
    await graph.call("PUT", "principals/olena", {"kind": "operator"}, status=201)
    operator = (await graph.key(path="principals/olena/keys"))["key"]
    await graph.replica.refresh()
    for presented in (key, INTERNAL):
        for method, path in (
            ("GET", "principals"),
            ("GET", FIRST),
            ("PUT", FIRST),
            ("DELETE", FIRST),
            ("POST", SECOND),
            ("POST", f"{FIRST}/rotate"),
            ("DELETE", f"{SECOND}/0"),
        ):
            assert "operator" in await graph.refused(403, method, path, {}, key=presented)
    assert "Bearer" in await graph.refused(401, "GET", "principals", key="guessed")
    assert "ask for a new one" in await graph.refused(401, "GET", "me", key=f"{key}x")
    assert (await graph.call("GET", FIRST, key=operator))["name"] == "sofia-bot"


async def test_a_third_live_key_is_refused_until_one_has_ended(graph, owner):
    await graph.sofia()
    first = await graph.key()
    await graph.key({"expires_in_days": 1})
    for path in (SECOND, f"{FIRST}/rotate"):
        assert "2 live keys: revoke one" in await graph.refused(409, "POST", path, {})
    await graph.call("DELETE", f"{SECOND}/{first['id']}", status=204)
    await graph.refused(404, "DELETE", f"{SECOND}/{first['id']}")
    await graph.refused(404, "DELETE", f"{SECOND}/no-id")
    await graph.key()
    await graph.refused(409, "POST", SECOND, {})
    await owner.execute("UPDATE access_keys SET expires_at = now() WHERE expires_at IS NOT NULL")
    await graph.key()


async def test_a_rotated_key_opens_for_the_grace_period(graph):
    await graph.sofia()
    old = await graph.key()
    new = await graph.call("POST", f"{FIRST}/rotate", {"grace_s": 3600}, status=201)
    await graph.other.refresh()
    for issued in (old, new):
        assert graph.other.of_key(issued["key"].encode()).name == "sofia-bot"
    ends = {key["id"]: key.get("expires_at") for key in (await graph.call("GET", FIRST))["keys"]}
    assert ends[new["id"]] is None
    left = datetime.fromisoformat(ends[old["id"]]) - datetime.now(UTC)
    assert timedelta(minutes=30) < left <= timedelta(hours=1)
    await graph.refused(409, "POST", f"{FIRST}/rotate", {"grace_s": 1})  # both are still live
    newest = await graph.call("POST", f"{FIRST}/rotate", {"grace_s": 0}, status=201)
    await graph.other.refresh()
    assert graph.other.of_key(newest["key"].encode()).name == "sofia-bot"
    with pytest.raises(Unauthorized):
        graph.other.of_key(new["key"].encode())


async def test_a_revoked_key_and_a_removed_principal_end_at_another_replica(graph):
    await graph.sofia()
    first, second = [await graph.key() for _ in range(2)]
    await graph.other.refresh()
    assert graph.other.of_key(first["key"].encode()).grants.agents == ["agent:sofia"]
    await graph.call("DELETE", f"{SECOND}/{first['id']}", status=204)
    await graph.other.refresh()
    with pytest.raises(Unauthorized):
        graph.other.of_key(first["key"].encode())
    assert graph.other.of_key(second["key"].encode()).name == "sofia-bot"
    await graph.call("DELETE", FIRST, status=204)
    await graph.other.refresh()
    with pytest.raises(Unauthorized):
        graph.other.of_key(second["key"].encode())
    with pytest.raises(Forbidden, match="withdrawn"):
        graph.other.named("sofia-bot")


async def test_a_replica_follows_by_itself(graph):
    await graph.sofia()
    key = (await graph.key())["key"]
    async with asyncio.timeout(60):
        while "error" in await graph.call("GET", "me", key=key):
            await asyncio.sleep(0.05)


async def test_a_key_expires_between_two_reads_of_the_store(graph):
    await graph.sofia()
    key = (await graph.key({"expires_in_days": 30}))["key"].encode()
    snapshot = await graph.store.load()
    graph.other.take(snapshot)
    assert graph.other.of_key(key).name == "sofia-bot"
    past = replace(snapshot.keys[key_hash(key)], expires_at=datetime.now(UTC))
    graph.other.take(replace(snapshot, keys={key_hash(key): past}))
    with pytest.raises(Unauthorized, match="expired"):
        graph.other.of_key(key)


async def last_uses(graph):
    return {key["id"]: key.get("last_used_at") for key in (await graph.call("GET", FIRST))["keys"]}


async def test_the_last_use_of_a_key_is_recorded(graph):
    await graph.sofia()
    used, unused = [await graph.key() for _ in range(2)]
    await graph.other.refresh()
    graph.other.of_key(used["key"].encode())
    await graph.other.refresh()
    last = await last_uses(graph)
    assert last[used["id"]] >= used["created_at"]
    assert last[unused["id"]] is None
    await graph.store.touch([UUID(used["id"])])
    assert await last_uses(graph) == last  # not every use is worth a row


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("principals/Sofia Bot", SOFIA, "pattern"),
        ("principals/internal", SOFIA, "choose another"),
        ("principals/key-0123456789ab", SOFIA, "choose another"),
        ("principals/jwt:olena:0123456789abcdef", SOFIA, "choose another"),
        (FIRST, {"agents": ["agent:*:x"]}, "may only stand at the end"),
        (FIRST, {"agents": "agent:sofia"}, "agents"),
        (FIRST, {"agents": [" agent:sofia"]}, "begin or end with a space"),
        (FIRST, {"microdaos": ["microdao:7 "]}, "begin or end with a space"),
        (FIRST, {"kind": "root"}, "'service', 'agent', 'person' or 'operator'"),
        (FIRST, {"applications": ["billing"]}, "applications"),
        (FIRST, {"agent": ["agent:sofia"]}, "unknown field"),
        (FIRST, {"limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
        (FIRST, {"reply_subjects": ["> .x"]}, "reply_subjects"),
    ],
)
async def test_a_wrong_name_or_grant_is_named(graph, path, body, says):
    assert says in await graph.refused(400, "PUT", path, body)


async def test_a_key_needs_no_body(graph):
    await graph.sofia()
    for path in (SECOND, f"{FIRST}/rotate"):
        assert (await graph.call("POST", path, status=201))["label"] == ""


@pytest.mark.parametrize(
    "body",
    [{"expires_in_days": 0}, {"expires_in_days": 5_000}, {"label": "x" * 201}, {"grace_s": 1}, []],
)
async def test_a_wrong_key_is_refused(graph, body):
    await graph.sofia()
    await graph.refused(400, "POST", SECOND, body)
    assert (await graph.call("GET", FIRST))["keys"] == []


async def test_a_row_of_a_later_version_is_passed_over_with_an_event(graph, owner, events):
    await graph.sofia()
    key = (await graph.key())["key"].encode()
    await graph.call("PUT", "principals/other-bot", {}, status=201)
    other = (await graph.key(path="principals/other-bot/keys"))["key"].encode()
    grants = Jsonb({**SOFIA, "wings": ["left"]})
    await owner.execute(
        "UPDATE access_principals SET grants = %s WHERE name = 'sofia-bot'", [grants]
    )
    await owner.execute("UPDATE access_state SET revision = revision + 1")
    events.events.clear()
    await graph.other.refresh()
    assert "sofia-bot" in {event["principal"] for event in events.named("access.unreadable")}
    assert graph.other.of_key(other).name == "other-bot"
    with pytest.raises(Forbidden):
        graph.other.of_key(key)
    listed = await graph.call("GET", "principals", status=200)
    assert [view["name"] for view in listed["items"]] == ["other-bot"]
    assert "a later one wrote" in await graph.refused(409, "GET", FIRST)
    assert (await graph.call("PUT", FIRST, SOFIA, status=200))["grants"].items() >= SOFIA.items()
