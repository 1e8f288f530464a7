"""Agents on the real graph and the real local model: questions in a channel, answers live."""

import asyncio
import contextlib
import random
import sys
import time

import httpx
import pytest

from tests.support.workspace.live import event_stream

pytestmark = [pytest.mark.graph, pytest.mark.timeout(300, func_only=True)]

MESSAGING = "/internal/messaging"
RUNTIME = "/internal/agent-runtime"
PERSON, DEMO, SOFIA = "user:olena", "agent:demo", "agent:sofia"
PATIENCE_S = 200
NAMES = ("Harbour", "Orchard", "Lantern", "Meadow", "Compass", "Willow", "Granite", "Falcon")


async def call(client, method, path, body=None, seconds=PATIENCE_S):
    """Repeats a request that a replica could not answer while it was being replaced."""
    until = time.monotonic() + seconds
    while True:
        status = None
        with contextlib.suppress(httpx.HTTPError):
            answer = await client.request(method, path, json=body)
            status = answer.status_code
            if status < 300:
                return answer.json()
            assert status in {404, 500, 502, 503, 504}, answer.text
        assert time.monotonic() < until, f"{method} {path}: {status}"
        await asyncio.sleep(0.25)


async def make_channel(client, microdao, agent):
    body = {"name": "Загальний", "microdao_id": microdao, "members": [PERSON, agent]}
    return (await call(client, "POST", f"{MESSAGING}/channels", body))["id"]


async def ask(client, channel, text):
    body = {"sender_id": PERSON, "text": text, "message_id": f"ask-{random.getrandbits(32)}"}
    return await call(client, "POST", f"{MESSAGING}/channels/{channel}/messages", body)


async def replies(client, channel):
    messages = await call(client, "GET", f"{MESSAGING}/channels/{channel}/messages")
    return [message for message in messages if message["sender_type"] == "agent"]


async def until_replied(client, channel, count=1):
    async with asyncio.timeout(PATIENCE_S):
        while len(found := await replies(client, channel)) < count:
            await asyncio.sleep(0.5)
    return found


@pytest.fixture
async def ready_again(graph):
    """Waits until the graph is ready again."""
    yield
    await asyncio.to_thread(graph.wait_ready)


async def test_the_command_of_the_demo_shows_the_reply(graph):
    command = (sys.executable, "-m", "launcher.demo", "--ingress", graph.url, "--project", "Willow")
    demo = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(PATIENCE_S):
        shown, _ = await demo.communicate()
    assert demo.returncode == 0
    assert shown.decode().splitlines()[-1] == "the reply names the project"


async def test_the_demo_agent_names_the_project_while_its_steps_are_watched(client):
    microdao = f"microdao:graph-{random.getrandbits(32)}"
    name = f"{random.choice(NAMES)} {random.choice(NAMES)}"
    await call(client, "POST", f"{MESSAGING}/projects", {"name": name, "microdao_id": microdao})
    channel = await make_channel(client, microdao, DEMO)
    steps, reply = [], None
    async with (
        event_stream(client, f"{MESSAGING}/channels/{channel}/events") as events,
        asyncio.timeout(PATIENCE_S),
    ):
        assert await anext(events) is None
        asked = await ask(client, channel, "Which projects do we have?")
        async for event in events:
            if event is not None and event.name == "run.step":
                steps.append(event.data)
            if (
                event is not None
                and event.name == "message.created"
                and event.data["sender_id"] == DEMO
            ):
                reply = event.data
                break
    assert name in reply["body"]
    assert {"memory", "llm", "tool_call"} & {step["kind"] for step in steps}
    assert {step["run_id"] for step in steps} == {reply["run_id"]}
    run = await call(client, "GET", f"{RUNTIME}/runs/{reply['run_id']}?microdao_id={microdao}")
    assert (run["trigger_id"], run["tool_calls"]) == (asked["id"], 1)
    assert [message["id"] for message in await replies(client, channel)] == [reply["id"]]


async def test_a_question_outlives_the_replica_that_took_it(client, graph, ready_again):
    """The agent runtime's only replica is killed while it works: another one answers, once."""
    microdao = f"microdao:graph-{random.getrandbits(32)}"
    channel = await make_channel(client, microdao, DEMO)
    async with (
        event_stream(client, f"{MESSAGING}/channels/{channel}/events") as events,
        asyncio.timeout(PATIENCE_S),
    ):
        assert await anext(events) is None
        await ask(client, channel, "Which projects do we have?")
        async for event in events:
            if event is not None and event.name == "run.step":
                break
    for process in graph.replicas("agents", "AgentRuntime"):
        process.kill()
    (reply,) = await until_replied(client, channel)
    run = await call(client, "GET", f"{RUNTIME}/runs/{reply['run_id']}?microdao_id={microdao}")
    assert run["status"] == "answered"
    await asyncio.sleep(3)  # by now a second reply would have come
    assert len(await replies(client, channel)) == 1


async def test_a_message_outlives_the_workspaces_replica_and_its_watchers_resume(
    client, graph, ready_again
):
    microdao = f"microdao:graph-{random.getrandbits(32)}"
    channel = await make_channel(client, microdao, SOFIA)
    path = f"{MESSAGING}/channels/{channel}/events"
    graph.upstream("ok")
    asked = await ask(client, channel, "Привіт! Як справи?")
    for process in graph.replicas("workspace", "Workspace"):
        process.kill()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(httpx.HTTPError, AssertionError):
                async with event_stream(client, path, headers={"Last-Event-ID": "0"}) as events:
                    seen = []
                    async for event in events:
                        if event is not None and event.name == "message.created":
                            seen.append(event.data)
                        if seen and seen[-1]["sender_id"] == SOFIA:
                            break
                    else:
                        continue
                    break
            await asyncio.sleep(0.5)
    assert [message["sender_id"] for message in seen] == [PERSON, SOFIA]
    assert seen[0]["id"] == asked["id"]
    (invocation,) = await call(client, "GET", f"{MESSAGING}/channels/{channel}/invocations")
    # Still pending where the replica died before it recorded the handover; the repeated handover
    # has no effect.
    assert (invocation["agent_id"], invocation["state"] != "failed") == (SOFIA, True)
