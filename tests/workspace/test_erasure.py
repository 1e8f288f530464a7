"""Erased channels and agents, as the clients of the workspace see them."""

import httpx
import pytest

from backends.postgres.erasing import TenantRows
from contracts.memory.administration import EraseRequest
from tests.support.uvicorn_server import JSON
from tests.support.workspace.application import workspace

OWN, OLENA, SOFIA = "microdao:7", "user:olena", "agent:sofia"


@pytest.fixture
async def http(database_url, events):
    async with (
        workspace(database_url, events) as running,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(running.app), base_url="http://localhost", headers=JSON
        ) as client,
    ):
        yield client


async def make(http):
    body = {"name": "Загальний", "microdao_id": OWN, "members": [OLENA, SOFIA]}
    answer = await http.post("/channels", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def post(http, channel, text, sender=OLENA):
    return await http.post(
        f"/channels/{channel}/messages", json={"sender_id": sender, "text": text}
    )


async def read(http, channel):
    return [message["body"] for message in (await http.get(f"/channels/{channel}/messages")).json()]


async def test_an_erased_channel_takes_and_shows_nothing(http, database):
    channel, other = await make(http), await make(http)
    for place in (channel, other):
        assert (await post(http, place, "Привіт")).status_code == 201
    for spelling in (channel.upper(), f"urn:uuid:{channel}", f"{{{channel}}}"):
        assert (await post(http, spelling, "Інакше")).status_code == 404  # ids have one spelling
    erased = await TenantRows(database).erase(EraseRequest(microdao_id=OWN, channel_id=channel))
    assert (erased["channels"], erased["messages"], erased["invocations"]) == (1, 1, 1)
    assert (await post(http, channel, "Ще тут?")).status_code == 404
    assert (await http.get(f"/channels/{channel}")).status_code == 404
    assert await read(http, other) == ["Привіт"]


async def test_an_erased_agent_leaves_its_channels_with_its_messages(http, database):
    channel = await make(http)
    await post(http, channel, "Привіт")
    assert (await post(http, channel, "Вітаю", sender=SOFIA)).status_code == 201
    await TenantRows(database).erase(EraseRequest(microdao_id=OWN, agent_id=SOFIA))
    assert await read(http, channel) == ["Привіт"]
    assert (await http.get(f"/channels/{channel}")).json()["members"] == [OLENA]
