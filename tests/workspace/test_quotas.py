"""The quota of messages of a microDAO, over HTTP."""

import httpx

from tests.support.access import fixed_access
from tests.support.uvicorn_server import JSON
from tests.support.workspace.application import workspace

OLENA, SOFIA = "user:olena", "agent:sofia"
ONE = {"quotas": {"default": {"messages": 1}, "microdaos": {"microdao:8": {"messages": 2}}}}


async def test_a_message_over_the_quota_is_refused_and_a_known_one_is_found(database_url, events):
    async with (
        workspace(database_url, events, access=fixed_access(settings=ONE)) as running,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(running.app), base_url="http://localhost", headers=JSON
        ) as http,
    ):

        async def channel(microdao_id):
            body = {"name": "c", "microdao_id": microdao_id, "members": [OLENA, SOFIA]}
            return (await http.post("/channels", json=body)).json()["id"]

        async def post(place, text, key, sender=OLENA):
            body = {"sender_id": sender, "text": text, "message_id": key}
            return (await http.post(f"/channels/{place}/messages", json=body)).status_code

        first, second, other = [
            await channel(name) for name in ("microdao:7", "microdao:7", "microdao:8")
        ]
        assert await post(first, "Привіт", "m-1") == 201
        assert await post(second, "Ще", "m-2") == 429  # channels share the quota
        assert await post(first, "Привіт", "m-1") == 200
        assert await post(other, "1", "1", "user:stranger") == 403  # stores nothing, counts nothing
        assert [await post(other, "1", "1") for _ in range(3)] == [201, 200, 200]
        assert [await post(other, text, text) for text in ("2", "3")] == [201, 429]
        reply = {"channel_id": first, "text": "Вітаю", "run_id": "r"}
        refused = await http.post(f"/agents/{SOFIA}/post-to-channel", json=reply)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "over_limit")
