"""Live events over a real HTTP server and PostgreSQL: order, resumption, other replicas, slow and
vanished watchers.
"""

import asyncio
import uuid

import httpx
import pytest

from services.workspace import live
from tests.support.workspace.application import PREFIX, served_workspace
from tests.support.workspace.live import event_stream, take

OWN = "microdao:7"
OLENA, SOFIA = "user:olena", "agent:sofia"


@pytest.fixture
async def replica(database_url, events):
    async with served_workspace(database_url, events) as running:
        yield running


@pytest.fixture
async def http():
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


async def make(http, replica):
    body = {"name": "Загальний", "microdao_id": OWN, "members": [OLENA, SOFIA]}
    return (await http.post(f"{replica.url}{PREFIX}/channels", json=body)).json()["id"]


def place(replica, channel, what="events"):
    return f"{replica.url}{PREFIX}/channels/{channel}/{what}"


async def say(http, replica, channel, text):
    answer = await http.post(
        place(replica, channel, "messages"), json={"sender_id": OLENA, "text": text}
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


async def step(http, replica, channel, *indices, run="r-1", **detail):
    steps = [{"index": index, "kind": "tool_call", "detail": detail} for index in indices]
    return (
        await http.post(
            place(replica, channel, "run-steps"),
            json={"agent_id": SOFIA, "run_id": run, "steps": steps},
        )
    ).json()


async def eventually(condition, seconds=30):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_messages_and_steps_arrive_in_order_and_once(http, replica):
    channel = await make(http, replica)
    await say(http, replica, channel, "до того")
    async with event_stream(http, place(replica, channel)) as events:
        assert await anext(events) is None  # the greeting: every later event arrives
        said = await say(http, replica, channel, "Які є проєкти?")
        assert await step(
            http, replica, channel, 0, 1, tool_id="projects.list", ok=True, ms=12.5
        ) == {"added": 2}
        assert await step(http, replica, channel, 1, 2) == {"added": 1}
        seen = await take(events, 4)
    assert [event.name for event in seen] == ["message.created", "run.step", "run.step", "run.step"]
    assert [event.id for event in seen] == ["2", "3", "4", "5"]
    assert seen[0].data == said
    assert [event.data["index"] for event in seen[1:]] == [0, 1, 2]
    assert seen[1].data["detail"] == {"tool_id": "projects.list", "ok": True, "ms": 12.5}
    assert {seen[1].data["run_id"], seen[1].data["agent_id"]} == {"r-1", SOFIA}


@pytest.mark.parametrize(
    ("how", "backlog"), [("header", 110), ("query", 3)]
)  # the first is more than two pages
async def test_a_watcher_resumes_where_it_was(http, replica, how, backlog):
    channel = await make(http, replica)
    for number in range(backlog):
        await say(http, replica, channel, str(number))
    options = {"headers": {"Last-Event-ID": "2"}} if how == "header" else {"params": {"after": 2}}
    async with event_stream(http, place(replica, channel), **options) as events:
        seen = await take(events, backlog - 2)
        await say(http, replica, channel, "далі")
        seen += await take(events, 1)
    assert [int(event.id) for event in seen] == list(range(3, backlog + 2))
    assert seen[-1].data["body"] == "далі"


async def test_a_watcher_ahead_of_the_channel_gets_new_events(http, replica):
    channel = await make(http, replica)
    async with event_stream(
        http, place(replica, channel), headers={"Last-Event-ID": "999"}
    ) as events:
        assert await anext(events) is None
        await say(http, replica, channel, "перше")
        assert (await take(events, 1))[0].data["body"] == "перше"


@pytest.mark.parametrize("given", ["x", "-1", str(2**63), "1.5"])
async def test_wrong_positions_are_400(http, replica, given):
    channel = await make(http, replica)
    answer = await http.get(place(replica, channel), headers={"Last-Event-ID": given})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request")


async def test_unknown_channels_are_404(http, replica):
    assert (await http.get(place(replica, uuid.uuid4()))).status_code == 404


async def test_events_stored_by_another_replica_arrive(http, replica, database_url):
    channel = await make(http, replica)
    async with (
        served_workspace(database_url) as other,
        event_stream(http, place(other, channel)) as events,
    ):
        assert await anext(events) is None
        await asyncio.gather(*(say(http, replica, channel, str(number)) for number in range(20)))
        await step(http, replica, channel, 0)
        seen = await take(events, 21)
    assert [int(event.id) for event in seen] == list(range(1, 22))
    assert {event.data["body"] for event in seen[:20]} == {str(number) for number in range(20)}


async def test_many_watchers_of_one_channel_each_see_everything(http, replica):
    channel = await make(http, replica)

    async def watch():
        async with event_stream(http, place(replica, channel)) as events:
            assert await anext(events) is None
            watching.release()
            return [event.data["body"] for event in await take(events, 30)]

    watching = asyncio.Semaphore(0)
    watchers = [asyncio.create_task(watch()) for _ in range(12)]
    for _ in watchers:
        await watching.acquire()
    for number in range(30):
        await say(http, replica, channel, str(number))
    expected = [str(number) for number in range(30)]
    assert [await watcher for watcher in watchers] == [expected] * 12


async def test_watchers_of_another_channel_see_nothing_of_it(http, replica):
    quiet, loud = await make(http, replica), await make(http, replica)
    async with event_stream(http, place(replica, quiet)) as events:
        assert await anext(events) is None
        for number in range(5):
            await say(http, replica, loud, str(number))
        await say(http, replica, quiet, "тиша")
        assert [event.data["body"] for event in await take(events, 1)] == ["тиша"]


async def test_silence_is_broken_by_heartbeats(http, replica, monkeypatch):
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.1)
    channel = await make(http, replica)
    async with event_stream(http, place(replica, channel)) as events, asyncio.timeout(30):
        assert [await anext(events) for _ in range(4)] == [None] * 4


async def test_a_watcher_that_goes_away_leaves_nothing_behind(http, replica):
    """Also while nothing happens in the channel: the server notices without having anything to
    send.
    """
    channel = await make(http, replica)
    async with event_stream(http, place(replica, channel)) as events:
        assert await anext(events) is None
        assert replica.feeds._count == 1
    await eventually(lambda: replica.feeds._count == 0)
    assert replica.feeds._feeds == {}
    assert replica.app._slots.running == 0


async def test_one_stream_too_many_is_refused_and_a_place_comes_back(http, database_url, events):
    async with served_workspace(database_url, events, max_streams=2) as replica:
        channel = await make(http, replica)
        async with (
            event_stream(http, place(replica, channel)),
            event_stream(http, place(replica, channel)),
        ):
            refused = await http.get(place(replica, channel))
            assert (refused.status_code, refused.json()["error"]["type"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            assert (await http.get(place(replica, channel, "messages"))).status_code == 200
        await eventually(lambda: replica.feeds._count == 0)
        async with event_stream(http, place(replica, channel)) as stream:
            assert await anext(stream) is None


async def test_a_slow_watcher_holds_no_events_of_its_own(http, replica, monkeypatch):
    """It is far behind what the replica keeps; when it reads on, everything comes from the store,
    in order.
    """
    monkeypatch.setattr(live, "MAX_KEPT", 8)
    channel = await make(http, replica)
    async with event_stream(http, place(replica, channel)) as events:
        assert await anext(events) is None
        body = (
            "ї" * 30_000
        )  # more than the socket buffers hold, so that the server has to wait for the reader
        for _ in range(100):
            await say(http, replica, channel, body)
        (feed,) = replica.feeds._feeds.values()
        assert len(feed.events) <= 8
        seen = await take(events, 100)
    assert [int(event.id) for event in seen] == list(range(1, 101))


async def test_streams_end_with_the_replica(http, database_url, events):
    async with served_workspace(database_url, events) as replica:
        channel = await make(http, replica)
        async with event_stream(http, place(replica, channel)) as stream:
            assert await anext(stream) is None
            await replica.feeds.close()
            async with asyncio.timeout(30):
                assert [event async for event in stream] == []
