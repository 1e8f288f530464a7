"""Who sends an invocation over NATS: keys, a bound subject, the router's own NATS user. Server and
principals are real, and every application demands a credential.
"""

from __future__ import annotations

import asyncio
import json

import nats
import psycopg
import pytest

from contracts.access.principals import Grants
from interfaces.nats import agents as subjects
from interfaces.nats.work_queue import ERROR_HEADER, REASON_HEADER
from launcher.nats import ROUTER, NatsServer
from tests.support import access as access_support
from tests.support.access import apply_file, opened_access
from tests.support.agents import platform as platform_support
from tests.support.agents.platform import OWN, SOFIA, blueprint, platform
from tests.support.agents.scripted_model import Thought
from tests.support.events import RecordedEvents
from tests.support.memory import application as memory_support
from tests.support.workspace import application as workspace_support

SECRET = "the internal secret of this test"
KEY = "dk_" + "s" * 43
SIGNED = {"Authorization": f"Bearer {KEY}"}
OTHER = "microdao:8"
PRINCIPALS = {
    "sofia-bot": Grants(kind="agent", agents=[SOFIA], microdaos=[OWN]),
    "dagi-router": Grants(agents=["agent:*"], microdaos=[OWN], applications=["agents"]),
}


@pytest.fixture
async def server(tmp_path):
    async with NatsServer(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def outside(server):
    """A connection of the service's own NATS user."""
    connection = await nats.connect(server.url)
    yield connection
    await connection.close()


@pytest.fixture
async def router(server, tmp_path):
    """A connection of the router's NATS user."""
    connection = await nats.connect(
        f"nats://127.0.0.1:{server.port}",
        user=ROUTER,
        password=(tmp_path / "nats" / "secrets" / "nats_router").read_text(),
    )
    yield connection
    await connection.close()


@pytest.fixture
async def access(database_url, monkeypatch):
    async with opened_access(database_url, RecordedEvents(), SECRET) as known:
        await apply_file(known, PRINCIPALS, {KEY: "sofia-bot"})
        for module in (access_support, platform_support, memory_support, workspace_support):
            monkeypatch.setattr(module, "fixed_access", lambda *_args, **_known: known)
        yield known


@pytest.fixture
async def here(database_url, tmp_path, server, access):
    async with platform(database_url, tmp_path, nats_url=server.url, agents=False) as running:
        running.http.headers["X-Internal-Secret"] = SECRET
        running.use(blueprint(), blueprint(id="agent:other"))
        running.model.script(Thought(calls=[("projects__list", {})]), Thought("Є «Сад»."))
        async with running.agents():
            async with asyncio.timeout(60):
                while (await health(running))["nats"]["state"] != "ready":
                    await asyncio.sleep(0.05)
            yield running


async def health(here):
    return (await here.http.get("/internal/agent-runtime/health")).json()["checks"]


async def send(here, connection, channel, headers=None, agent=SOFIA):
    message = await here.say(channel, "Які проєкти?")
    payload = {"channel_id": channel, "message_id": message}
    body = {"agent_id": agent, "entrypoint": "channel_message", "payload": payload}
    await connection.publish(subjects.INVOKE, json.dumps(body).encode(), headers=headers)


async def replied(here, channel):
    async with asyncio.timeout(60):
        while not (replies := await here.replies(channel)):
            await asyncio.sleep(0.05)
    return replies


async def callers(urls):
    """Returns for whom the recorded runs work."""
    async with await psycopg.AsyncConnection.connect(urls.superuser) as connection:
        return await (await connection.execute("SELECT caller FROM agent_runs")).fetchall()


async def test_a_signed_invocation_runs_for_its_sender_and_for_no_other_tenant(
    here, outside, database_urls
):
    parked = await outside.jetstream().subscribe(subjects.PARKED)
    own, foreign = await here.channel(), await here.channel(microdao_id=OTHER)
    shared = await here.channel("user:olena", SOFIA, "agent:other")
    await send(here, outside, foreign, SIGNED)
    refused = await parked.next_msg(timeout=60)
    assert refused.headers[REASON_HEADER] == "not_found"
    assert OTHER not in refused.headers[ERROR_HEADER]
    await send(here, outside, shared, SIGNED, agent="agent:other")
    refused = await parked.next_msg(timeout=60)
    assert refused.headers[REASON_HEADER] == "forbidden"
    assert "`agent:other`" in refused.headers[ERROR_HEADER]
    await send(here, outside, own, SIGNED)
    assert await replied(here, own) == ["Є «Сад»."]
    assert await here.replies(foreign) == []
    tenant = {"microdao_id": OWN, "agent_id": SOFIA}
    assert await callers(database_urls) == [({"sub": "sofia-bot", "tenant": tenant},)]


@pytest.mark.parametrize("headers", [None, {"Authorization": "Bearer dk_guessed"}])
async def test_an_invocation_without_a_valid_key_is_parked(here, outside, headers):
    parked = await outside.jetstream().subscribe(subjects.PARKED)
    channel = await here.channel()
    await send(here, outside, channel, headers)
    refused = await parked.next_msg(timeout=60)
    assert refused.headers[REASON_HEADER] == "unauthorized"
    assert ("ask for a new one" if headers else "present a key as") in refused.headers[ERROR_HEADER]
    assert await here.replies(channel) == []


async def test_a_bound_subject_acts_as_its_principal(here, outside, router, access, database_urls):
    keys, bound = {KEY: "sofia-bot"}, {"subjects": {subjects.INVOKE: "dagi-router"}}
    await apply_file(access, PRINCIPALS, keys, nats=bound)
    parked = await outside.jetstream().subscribe(subjects.PARKED)
    await send(here, router, await here.channel(microdao_id=OTHER))
    refused = await parked.next_msg(timeout=60)
    assert "no such channel" in refused.headers[ERROR_HEADER]
    own = await here.channel()
    await send(here, router, own)
    assert await replied(here, own) == ["Є «Сад»."]
    assert [caller["sub"] for (caller,) in await callers(database_urls)] == ["dagi-router"]

    await apply_file(access, {"sofia-bot": PRINCIPALS["sofia-bot"]}, keys, nats=bound)
    await send(here, router, own)
    refused = await parked.next_msg(timeout=60)
    assert "`dagi-router` was withdrawn" in refused.headers[ERROR_HEADER]
