"""PostgreSQL stops and starts again: requests are refused meanwhile, no message is lost, streams
and the outbox continue.
"""

import asyncio

import httpx
import pytest

from backends.http.agent_runtime import AgentRuntimeClient
from backends.http.client import presenting
from backends.postgres.migrate import migrate
from launcher.postgres import PostgresServer
from tests.support.agents.runtime import recording_server
from tests.support.workspace.application import PREFIX, served_workspace
from tests.support.workspace.live import event_stream, take

OLENA, SOFIA = "user:olena", "agent:sofia"


@pytest.fixture
async def own_server(server_folder):
    async with PostgresServer(server_folder) as server:
        await migrate(server.urls.owner)
        yield server


@pytest.mark.timeout(240)
async def test_the_database_goes_and_comes_back(own_server, events):
    async with recording_server() as runtime:
        invoker = AgentRuntimeClient(runtime.url, presenting(None))
        async with (
            served_workspace(own_server.urls.service, events, invoker=invoker) as replica,
            httpx.AsyncClient(base_url=f"{replica.url}{PREFIX}", timeout=60) as http,
        ):
            body = {"name": "x", "microdao_id": "microdao:7", "members": [OLENA, SOFIA]}
            channel = (await http.post("/channels", json=body)).json()["id"]
            path = f"/channels/{channel}/messages"

            async def say(text):
                return await http.post(
                    path, json={"sender_id": OLENA, "text": text, "message_id": text}
                )

            async with event_stream(http, f"/channels/{channel}/events") as stream:
                assert await anext(stream) is None
                assert (await say("до")).status_code == 201
                (before,) = await take(stream, 1)
                await own_server.stop()
                refused = await say("під час")
                assert (refused.status_code, refused.json()["error"]["type"]) == (
                    503,
                    "database_unavailable",
                )
                assert refused.json()["error"]["retryable"] is True
                assert (await http.get(f"/channels/{channel}/events")).status_code == 503
                await own_server.start()
                async with asyncio.timeout(60):
                    while (await say("під час")).status_code >= 500:
                        await asyncio.sleep(0.2)
                assert (await say("після")).status_code == 201
            last = {"Last-Event-ID": before.id}
            async with event_stream(http, f"/channels/{channel}/events", headers=last) as stream:
                seen = await take(stream, 2)
            assert [event.data["body"] for event in seen] == ["під час", "після"]
            async with asyncio.timeout(60):
                while len(runtime.seen) < 3:
                    await asyncio.sleep(0.1)
            listed = (await http.get(path)).json()
            assert {seen.body["payload"]["message_id"] for seen in runtime.seen} == {
                message["id"] for message in listed
            }
            assert len(listed) == 3
        await invoker.close()
    assert events.named("workspace.dispatch_defect") == []
