"""A key made by the command opens every application of the running graph, and no longer than it
should.
"""

import asyncio
import sys

import httpx
import pytest

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420)]

OWN = {"microdao_id": "microdao:keys", "agent_id": "agent:keys"}
ROUTES = (
    "/internal/access/me",
    "/internal/llm/usage",
    "/internal/agent-memory/items",
    "/internal/tools/calls",
    "/internal/agent-runtime/runs",
    "/internal/messaging/channels",
)
PATIENCE_S = 60


async def command(graph, *words):
    """Returns what the command wrote to standard output."""
    run = (sys.executable, "-m", "launcher.keys", "--ingress", graph.url, *words)
    process = await asyncio.create_subprocess_exec(*run, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()


async def until_answered(client, status):
    """Returns once every application answers so, each with what the principal alone may see."""
    async with asyncio.timeout(PATIENCE_S):
        for route in ROUTES:
            while (answer := await client.get(route)).status_code != status:
                await asyncio.sleep(0.1)
            assert answer.headers["content-type"] == "application/json"


async def test_a_key_opens_every_application_until_it_is_revoked(graph):
    key = await command(
        graph, "new", "keys-bot", "--agent", OWN["agent_id"], "--microdao", OWN["microdao_id"]
    )
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=graph.url, headers=headers, timeout=60) as client:
        await until_answered(client, 200)
        for route in ROUTES[1:]:
            foreign = await client.get(route, params={"microdao_id": "microdao:foreign"})
            assert foreign.status_code == 403, route
            assert "microdao:foreign" in foreign.json()["error"]["message"]
        assert (await client.get("/internal/access/principals")).status_code == 403
        new = await command(graph, "rotate", "keys-bot")
        await command(graph, "revoke", "keys-bot", key[:12])
        await until_answered(client, 401)
        client.headers["Authorization"] = f"Bearer {new}"
        await until_answered(client, 200)
        await command(graph, "remove", "keys-bot")
        await until_answered(client, 401)
