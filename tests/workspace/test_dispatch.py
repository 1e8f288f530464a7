"""A human's message reaches the channel's agents: through the outbox, over real HTTP, past
failures, crashes and neighbours.
"""

import asyncio
import contextlib
import socket
from collections import Counter
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from backends.http.agent_runtime import AgentRuntimeClient
from backends.http.client import presenting
from backends.workspace.outbox import PostgresOutbox
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.workspace.invocations import LeasedInvocation
from services.workspace import dispatching
from services.workspace.dispatching import DispatchLimits
from tests.support.agents.runtime import recording_server
from tests.support.workspace.application import workspace

OWN = "microdao:7"
OLENA, SOFIA, PM = "user:olena", "agent:sofia", "agent:pm"


@pytest.fixture(autouse=True)
def polled_often(monkeypatch):
    """The default is for idle replicas."""
    monkeypatch.setattr(dispatching, "POLL_EVERY_S", 0.05)
    monkeypatch.setattr(dispatching, "FIRST_DELAY_S", 0.05)


def envelope(kind, *, retryable=False):
    return {
        "error": {
            "type": kind,
            "message": f"refused: {kind}",
            "retryable": retryable,
            "request_id": "r",
        }
    }


@contextlib.asynccontextmanager
async def dispatching_workspace(database_url, url, events=None, secret="s-1", **limits):
    invoker = AgentRuntimeClient(url, presenting(secret))
    try:
        async with (
            workspace(
                database_url,
                events,
                invoker=invoker,
                limits=DispatchLimits(**{"max_delay_s": 0.2, **limits}),
            ) as replica,
            httpx.AsyncClient(
                transport=httpx.ASGITransport(replica.app), base_url="http://localhost"
            ) as http,
        ):
            replica.http = http
            yield replica
    finally:
        await invoker.close()


async def make(http, *members):
    return (
        await http.post(
            "/channels", json={"name": "x", "microdao_id": OWN, "members": list(members)}
        )
    ).json()["id"]


async def say(http, channel, text="Питання", sender=OLENA, **fields):
    answer = await http.post(
        f"/channels/{channel}/messages", json={"sender_id": sender, "text": text, **fields}
    )
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()


async def settled(http, channel, count, state):
    """Waits until `count` invocations of the channel are in a state; returns them all."""
    async with asyncio.timeout(60):
        while True:
            listed = (
                await http.get(f"/channels/{channel}/invocations", params={"limit": 200})
            ).json()
            if sum(one["state"] == state for one in listed) >= count:
                return listed
            await asyncio.sleep(0.05)


async def test_a_humans_message_invokes_each_agent_of_the_channel(database_url):
    async with (
        recording_server() as runtime,
        dispatching_workspace(database_url, runtime.url) as replica,
    ):
        channel = await make(replica.http, OLENA, SOFIA, PM, "user:petro")
        message = await say(replica.http, channel, message_id="m-1")
        await say(replica.http, channel, message_id="m-1")  # repeated: no second invocation
        await say(replica.http, channel, "відповідь", SOFIA)  # an agent's: no invocation
        listed = await settled(replica.http, channel, 2, "delivered")
        assert {(one["agent_id"], one["message_id"], one["attempts"]) for one in listed} == {
            (SOFIA, message["id"], 1),
            (PM, message["id"], 1),
        }
        assert sorted(seen.body["agent_id"] for seen in runtime.seen) == [PM, SOFIA]
        first = runtime.seen[0]
        assert (first.method, first.path, first.query) == (
            "POST",
            "/internal/agent-runtime/invocations",
            {"wait": "false"},
        )
        assert first.headers["x-internal-secret"] == "s-1"
        assert first.body["entrypoint"] == "channel_message"
        assert first.body["payload"] == {
            "channel_id": channel,
            "message_id": message["id"],
            "microdao_id": OWN,
        }


@pytest.mark.parametrize(
    "refusal",
    [
        (503, envelope("overloaded", retryable=True)),
        (404, envelope("not_found")),
        (502, b"<html>"),
        (401, envelope("unauthorized")),
        (500, {}),
    ],
)
async def test_a_runtime_that_refuses_for_now_is_asked_again(database_url, refusal):
    def answer(seen):
        return refusal if len(runtime.seen) <= 2 else (202, {"run_id": "r"})

    async with (
        recording_server(answer) as runtime,
        dispatching_workspace(database_url, runtime.url) as replica,
    ):
        channel = await make(replica.http, OLENA, SOFIA)
        await say(replica.http, channel)
        (only,) = await settled(replica.http, channel, 1, "delivered")
        assert only["attempts"] == 3
        assert "reason" not in only


async def test_a_runtime_that_is_away_is_found_when_it_comes(database_url):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, but nobody listens
        async with dispatching_workspace(database_url, url, give_up_after_s=120) as replica:
            channel = await make(replica.http, OLENA, SOFIA)
            await say(replica.http, channel)
            async with asyncio.timeout(30):
                while not (
                    waiting := (await replica.http.get(f"/channels/{channel}/invocations")).json()
                )[0].get("reason"):
                    await asyncio.sleep(0.05)
            assert waiting[0]["state"] == "pending"
    async with (
        recording_server() as runtime,
        dispatching_workspace(database_url, runtime.url) as replica,
    ):
        await settled(replica.http, channel, 1, "delivered")


async def test_an_invocation_that_is_not_accepted_in_time_is_given_up_and_shown(
    database_url, events
):
    async with (
        recording_server(lambda seen: (503, envelope("unavailable", retryable=True))) as runtime,
        dispatching_workspace(database_url, runtime.url, events, give_up_after_s=0.5) as replica,
    ):
        channel = await make(replica.http, OLENA, SOFIA)
        message = await say(replica.http, channel)
        (only,) = await settled(replica.http, channel, 1, "failed")
        assert only["reason"] == "refused: unavailable"
        assert only["settled_at"]
        shown = (await replica.channel_events.events(OWN, UUID(channel), 1, 10))[0]
        assert (shown.kind, shown.payload["agent_id"], shown.payload["message_id"]) == (
            "invocation.failed",
            SOFIA,
            message["id"],
        )
        (event,) = events.named("workspace.invocation_failed")
        assert event["attempts"] == only["attempts"]


@pytest.mark.parametrize("status", [400, 409, 413, 422])
async def test_a_permanent_refusal_of_the_runtime_is_not_retried(database_url, status):
    async with (
        recording_server(lambda seen: (status, envelope("invalid_request"))) as runtime,
        dispatching_workspace(database_url, runtime.url) as replica,
    ):
        channel = await make(replica.http, OLENA, SOFIA)
        await say(replica.http, channel)
        (only,) = await settled(replica.http, channel, 1, "failed")
        assert only["attempts"] == len(runtime.seen) == 1


async def test_replicas_share_a_backlog_and_nobody_is_invoked_twice(database_url):
    async with recording_server() as runtime:
        async with (
            workspace(database_url) as quiet,
            httpx.AsyncClient(
                transport=httpx.ASGITransport(quiet.app), base_url="http://localhost"
            ) as http,
        ):
            channels = [await make(http, OLENA, SOFIA) for _ in range(3)]
            for number in range(60):
                await say(http, channels[number % 3], str(number))
        async with (
            dispatching_workspace(database_url, runtime.url, max_concurrent=4) as one,
            dispatching_workspace(database_url, runtime.url, max_concurrent=4),
        ):
            for channel in channels:
                await settled(one.http, channel, 20, "delivered")
    assert set(Counter(seen.body["payload"]["message_id"] for seen in runtime.seen).values()) == {1}
    assert len(runtime.seen) == 60


async def test_an_attempt_whose_replica_died_is_made_again(database_url, database):
    dead = PostgresOutbox(database)
    async with (
        workspace(database_url) as quiet,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(quiet.app), base_url="http://localhost"
        ) as http,
    ):
        channel = await make(http, OLENA, SOFIA)
        await say(http, channel)
    (claimed,) = await dead.lease(10, 1.0)
    assert await PostgresOutbox(database).lease(10, 1.0) == []
    async with (
        recording_server() as runtime,
        dispatching_workspace(database_url, runtime.url) as replica,
    ):
        (only,) = await settled(replica.http, channel, 1, "delivered")
        assert only["attempts"] == 2
        await dead.failed(claimed, "too late: it is another's")
        (only,) = await settled(replica.http, channel, 1, "delivered")
        assert len(runtime.seen) == 1


async def test_a_slow_runtime_has_no_more_attempts_at_once_than_allowed(database_url):
    release = asyncio.Event()
    working = Counter()

    async def hold(_):
        working["now"] += 1
        working["most"] = max(working["most"], working["now"])
        try:
            if not release.is_set():
                await release.wait()
        finally:
            working["now"] -= 1
        return 202, {}

    async with (
        recording_server(hold) as runtime,
        dispatching_workspace(database_url, runtime.url, max_concurrent=3) as replica,
    ):
        channel = await make(replica.http, OLENA, SOFIA)
        for number in range(8):
            await say(replica.http, channel, str(number))
        async with asyncio.timeout(30):
            while len(runtime.seen) < 3:
                await asyncio.sleep(0.02)
        release.set()
        await settled(replica.http, channel, 8, "delivered")
    assert working["most"] <= 3


async def test_an_agent_that_left_is_not_invoked(database_url):
    async with (
        workspace(database_url) as quiet,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(quiet.app), base_url="http://localhost"
        ) as http,
    ):
        channel = await make(http, OLENA, SOFIA, PM)
        await say(http, channel)
        await http.delete(f"/channels/{channel}/members/{PM}")
    async with (
        recording_server() as runtime,
        dispatching_workspace(database_url, runtime.url) as replica,
    ):
        listed = await settled(replica.http, channel, 1, "delivered")
        assert {one["agent_id"]: one["state"] for one in listed} == {
            SOFIA: "delivered",
            PM: "failed",
        }
        assert [seen.body["agent_id"] for seen in runtime.seen] == [SOFIA]
        failed = (
            await replica.http.get(f"/channels/{channel}/invocations", params={"state": "failed"})
        ).json()
        assert [one["reason"] for one in failed] == ["the agent left the channel"]


async def test_old_settled_invocations_are_removed(database_url, database_owner_url, database):
    async with (
        recording_server() as runtime,
        dispatching_workspace(database_url, runtime.url) as replica,
    ):
        channel = await make(replica.http, OLENA, SOFIA)
        for number in range(3):
            await say(replica.http, channel, str(number))
        await settled(replica.http, channel, 3, "delivered")
        step = {"agent_id": SOFIA, "run_id": "r", "steps": [{"index": 0, "kind": "llm"}]}
        await replica.http.post(f"/channels/{channel}/run-steps", json=step)
        outbox = PostgresOutbox(database)
        assert await outbox.purge(7.0, None) == 0
        async with await psycopg.AsyncConnection.connect(database_owner_url) as connection:
            await connection.execute(
                "UPDATE invocation_outbox SET settled_at = now() - interval '8 days'"
            )
            await connection.execute(
                "UPDATE channel_events SET created_at = now() - interval '8 days'"
            )
        assert await outbox.purge(7.0, None) == 4
        assert len((await replica.http.get(f"/channels/{channel}/messages")).json()) == 3


async def test_the_invoker_keeps_its_deadline(database_url):
    async def late(_):
        await asyncio.sleep(5)
        return 202, {}

    claimed = LeasedInvocation(uuid4(), OWN, uuid4(), uuid4(), SOFIA, 1, 0.0)
    async with recording_server(late) as runtime:
        client = AgentRuntimeClient(runtime.url, presenting(None))
        with pytest.raises(DaarionError) as refused:
            await client.invoke(claimed, Deadline.after(0.2))
        await client.close()
    assert refused.value.retryable
