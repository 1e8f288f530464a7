"""Live events end with the right to watch them."""

import asyncio
from uuid import uuid4

import httpx
import pytest

from contracts.access.keys import LiveKey, Snapshot, key_hash
from contracts.access.principals import Grants
from services.access.directory import REFRESH_S
from services.workspace.live import HEARTBEAT_S
from tests.support.access import APPLIED, SIGNING_KEY, fixed_access
from tests.support.workspace.application import PREFIX, served_workspace
from tests.support.workspace.live import event_stream

OWN, OLENA = "microdao:7", "user:olena"
KEY, SECRET = "dk_olena", "internal-secret-of-tests"
GRANTS = Grants(agents=["*"], microdaos=["*"])


def known(revision, *, key=KEY, **grants):
    principals = {"olena": GRANTS.model_copy(update=grants)}
    keys = {key_hash(key.encode()): LiveKey(uuid4(), "olena", None)}
    return Snapshot(revision, principals, keys, SIGNING_KEY, APPLIED)


@pytest.fixture
def access():
    access = fixed_access(SECRET)
    access.directory.take(known(1))
    return access


@pytest.fixture
async def http():
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


async def test_a_stream_ends_before_the_next_event_once_its_caller_may_not_watch(
    http, database_url, events, access
):
    ourselves = {"X-Internal-Secret": SECRET}
    changes = {
        "unauthorized": {"key": "dk_another"},
        "forbidden": {"microdaos": ["microdao:9"]},
        None: {"microdaos": [OWN]},
    }
    async with served_workspace(
        database_url, events, access=access, application="workspace"
    ) as replica:
        place = f"{replica.url}{PREFIX}/channels"
        body = {"name": "Загальний", "microdao_id": OWN, "members": [OLENA]}
        channel = (await http.post(place, json=body, headers=ourselves)).json()["id"]
        for number, (refusal, change) in enumerate(changes.items()):
            access.directory.take(known(2 * number))
            async with (
                asyncio.timeout(30),
                event_stream(
                    http,
                    f"{place}/{channel}/events",
                    headers={"Authorization": f"Bearer {KEY}"},
                ) as stream,
            ):
                assert await anext(stream) is None
                access.directory.take(known(2 * number + 1, **change))
                said = {"sender_id": OLENA, "text": "Лише для своїх"}
                place_of_it = f"{place}/{channel}/messages"
                answer = await http.post(place_of_it, json=said, headers=ourselves)
                assert answer.status_code == 201
                seen = await anext(event async for event in stream if event is not None)
                if refusal is None:
                    assert seen.name == "message.created"
                    continue
                assert (seen.name, seen.data["error"]["type"]) == ("error", refusal)
                assert [event async for event in stream] == []


@pytest.mark.parametrize("change", [{"key": "dk_another"}, {"applications": ["llm"]}])
async def test_a_stream_without_events_ends_by_itself(http, database_url, events, access, change):
    async with served_workspace(
        database_url, events, access=access, application="workspace"
    ) as replica:
        place = f"{replica.url}{PREFIX}/channels"
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {"name": "Загальний", "microdao_id": OWN, "members": [OLENA]}
        channel = (await http.post(place, json=body, headers=headers)).json()["id"]
        async with (
            asyncio.timeout(30),
            event_stream(http, f"{place}/{channel}/events", headers=headers) as stream,
        ):
            access.directory.take(known(2, **change))
            assert [event.name async for event in stream if event is not None] == ["error"]


def test_a_stream_ends_within_five_seconds_of_the_change():
    assert REFRESH_S + HEARTBEAT_S < 5
