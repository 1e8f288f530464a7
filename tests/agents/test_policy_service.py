"""Invocations that an outside policy service decides about, before a run is recorded."""

import asyncio
import json

import nats
import pytest

from contracts.access.keys import Snapshot
from contracts.access.principals import Grants
from interfaces.nats import agents as subjects
from interfaces.nats.work_queue import REASON_HEADER
from launcher.nats import NatsServer
from tests.support.access import APPLIED, SIGNING_KEY, fixed_access
from tests.support.agents.platform import OWN, SOFIA, platform
from tests.support.policy_server import PERMIT, policy_server

KEY = "dk_the key of whoever invokes in these tests"
OLENA = Grants(kind="person", agents=["*"], microdaos=["*"])
DENY = (200, {"effect": "deny", "reason": "not a member"})
BROKEN = (500, {})


@pytest.fixture
async def policies():
    async with policy_server() as running:
        yield running


@pytest.fixture
async def here(database_url, tmp_path, policies):
    async with platform(database_url, tmp_path, access=asking(policies)) as running:
        yield running


def asking(policies):
    return fixed_access(
        principals={"olena-web": OLENA},
        keys={KEY: "olena-web"},
        settings={"policy_service": section(policies)},
    )


def section(policies, **settings):
    return {"url": policies.url, "cache_s": 0, "timeout_s": 20, **settings}


async def invoked(here, channel, message, **headers):
    payload = {"channel_id": channel, "message_id": message}
    body = {"agent_id": SOFIA, "entrypoint": "channel_message", "payload": payload}
    answer = await here.http.post(
        "/internal/agent-runtime/invocations", json=body, params={"wait": "true"}, headers=headers
    )
    return answer.status_code, answer.json()


async def runs(here):
    answer = await here.http.get("/internal/agent-runtime/runs", params={"microdao_id": OWN})
    return answer.json()["items"]


async def test_a_denied_invocation_is_refused_with_the_reason_and_leaves_no_run(here, policies):
    headers = {"x-api-key": KEY}
    channel = await here.channel()
    message = await here.say(channel, "Привіт")
    policies.answer = DENY
    status, answer = await invoked(here, channel, message, **headers)
    assert (status, answer["error"]["type"]) == (403, "forbidden")
    assert answer["error"]["message"] == "the policy service denies this: not a member"
    assert not answer["error"]["retryable"]
    assert await runs(here) == []
    assert here.model.bodies == []
    policies.answer = PERMIT
    status, answer = await invoked(here, channel, message, **headers)
    assert (status, answer["status"]) == (200, "answered")
    assert len(await runs(here)) == 1
    asked = policies.asked[-1]
    assert (asked["actor"]["actor_id"], asked["actor"]["actor_type"]) == ("olena-web", "human")
    assert (asked["action"], asked["resource"]) == ("send_message", {"type": "agent", "id": SOFIA})
    assert asked["context"] == {"agent_id": SOFIA, "microdao_id": OWN}


async def test_without_a_decision_an_invocation_is_refused_for_now_or_let_through(here, policies):
    channel = await here.channel()
    message = await here.say(channel, "Привіт")
    policies.answer = BROKEN
    status, answer = await invoked(here, channel, message)
    assert (status, answer["error"]["type"]) == (403, "policy_unavailable")
    assert answer["error"]["retryable"]
    assert await runs(here) == []
    directory, settings = here.access.directory, {"policy_service": section(policies)}
    settings["policy_service"]["on_failure"] = "allow"
    directory.take(Snapshot(directory.revision + 1, {}, {}, SIGNING_KEY, APPLIED | settings))
    status, answer = await invoked(here, channel, message)
    assert (status, answer["status"]) == (200, "answered")


async def test_a_message_on_nats_waits_for_a_decision_and_is_parked_by_a_denial(
    database_url, tmp_path, policies
):
    async with (
        NatsServer(tmp_path / "nats") as server,
        platform(database_url, tmp_path, access=asking(policies), nats_url=server.url) as here,
        asyncio.timeout(120),
    ):
        channel, outside = await here.channel(), await nats.connect(server.url)
        parked = await outside.subscribe(subjects.PARKED)

        async def send(text):
            payload = {"channel_id": channel, "message_id": await here.say(channel, text)}
            body = {"agent_id": SOFIA, "entrypoint": "channel_message", "payload": payload}
            await outside.publish(subjects.INVOKE, json.dumps(body).encode())

        policies.answer = BROKEN
        while await nats_state(here) != "ready":
            await asyncio.sleep(0.05)
        await send("Перше")
        while not policies.asked:
            await asyncio.sleep(0.05)
        policies.answer = PERMIT
        while not await here.replies(channel):
            await asyncio.sleep(0.05)
        assert not here.events.named("agents.nats_parked")
        policies.answer = DENY
        await send("Друге")
        message = await parked.next_msg(timeout=60)
        assert message.headers[REASON_HEADER] == "forbidden"
        assert len(await here.replies(channel)) == 1
        await outside.close()


async def nats_state(here):
    answer = await here.http.get("/internal/agent-runtime/health")
    return answer.json()["checks"]["nats"]["state"]
