"""Whose channel it is: the messaging-service or the configuration says so, never the invocation
alone.
"""

import pytest
import pytest_asyncio

from tests.support.agents.platform import OLENA, SOFIA, shared_platform
from tests.support.agents.runtime import recording_server
from tests.support.agents.scripted_model import Thought, shown

SECRET = "код від комори 4711"
CHANNEL = "3f0c7d5e-6a55-4d25-9f6e-1d1d2f3c4b5a"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(postgres, tmp_path_factory):
    async with shared_platform(postgres, tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture
def here(shared):
    shared.fresh()
    shared.model.mind = lambda body: Thought(
        f"Бачу: {SECRET}" if SECRET in shown(body) else "Не знаю."
    )
    return shared


class Neighbour:
    """A messaging-service; `channel` and `members` are its answers about the channel, None where it
    has no such route.
    """

    def __init__(self, channel=None, members=None):
        self.channel, self.members = channel, members
        self.posts = []

    def __call__(self, seen):
        known = {
            f"/api/messaging/channels/{CHANNEL}": self.channel,
            f"/api/messaging/channels/{CHANNEL}/members": self.members,
        }
        if seen.path.endswith("/messages"):
            said = {
                "sender_id": OLENA,
                "sender_type": "human",
                "content_preview": "Який код від комори?",
                "created_at": "2026-01-01T00:00:00",
            }
            return 200, [{"message_id": "m1", **said}]
        if seen.method == "POST":
            self.posts.append(seen.body["text"])
            return 200, {"message_id": "m2"}
        found = known.get(seen.path.replace(CHANNEL.upper(), CHANNEL))  # knows both spellings
        return (200, found) if found is not None else (404, {"detail": "Not Found"})


def channel_of(microdao_id):
    return {
        "id": CHANNEL,
        "slug": "yard",
        "name": "Двір",
        "microdao_id": microdao_id,
        "matrix_room_id": "!r:x",
        "visibility": "microdao",
    }


def in_it(*ids):
    return [
        {
            "id": "1",
            "channel_id": CHANNEL,
            "member_id": one,
            "member_type": "human",
            "role": "member",
        }
        for one in ids
    ]


async def remembering(here, microdao_id):
    memory = {
        "agent_id": SOFIA,
        "microdao_id": microdao_id,
        "kind": "task",
        "content": {"text": SECRET},
        "wait_indexed_s": 10,
    }
    await here.post("/internal/agent-memory/store", memory, 200)


async def invoked(here, entrypoint="channel_message", **payload):
    if entrypoint != "channel_message":
        payload["text"] = "Який код від комори?"
    body = {"agent_id": SOFIA, "entrypoint": entrypoint, "payload": payload}
    answer = await here.http.post("/internal/agent-runtime/invocations", json=body)
    return {**answer.json(), "http": answer.status_code}


@pytest.mark.parametrize("entrypoint", ["channel_message", "direct", "cron"])
@pytest.mark.parametrize(
    ("neighbour", "settings"),
    [
        (Neighbour(), {}),
        (Neighbour(channel=[]), {}),
        (Neighbour(channel={"id": CHANNEL, "name": "Двір"}), {}),
        (Neighbour(channel=channel_of("microdao:theirs")), {}),
        (Neighbour(), {"microdao_id": "microdao:theirs"}),
        (Neighbour(), {"microdaos": {CHANNEL: "microdao:theirs"}}),
        (Neighbour(), {"microdaos": {"another": "microdao:ours"}}),
    ],
    ids=["silent", "list", "without", "service", "single", "mapped", "unmapped"],
)
async def test_nobody_reads_another_tenants_memory_by_naming_it(
    here, neighbour, settings, entrypoint
):
    await remembering(here, here.microdao)
    neighbour.posts.clear()
    async with (
        recording_server(neighbour) as server,
        here.agents(messaging={"kind": "messaging_service", "base_url": server.url, **settings}),
    ):
        refused = await invoked(here, entrypoint, channel_id=CHANNEL, microdao_id=here.microdao)
    assert (refused["http"], refused["error"]["type"]) == (403, "forbidden")
    assert "microdao" in refused["error"]["message"]
    assert (neighbour.posts, here.model.bodies) == ([], [])


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("source", ["service", "single", "mapped", "service-first"])
async def test_the_channels_own_tenant_is_answered_from_its_memory(here, source, named):
    own = here.microdao
    await remembering(here, own)
    neighbour, settings = {
        "service": (Neighbour(channel_of(own), in_it(OLENA, SOFIA)), {}),
        "single": (Neighbour(), {"microdao_id": own}),
        "mapped": (Neighbour(), {"microdao_id": "microdao:theirs", "microdaos": {CHANNEL: own}}),
        "service-first": (Neighbour(channel_of(own)), {"microdaos": {CHANNEL: "microdao:theirs"}}),
    }[source]
    async with (
        recording_server(neighbour) as server,
        here.agents(messaging={"kind": "messaging_service", "base_url": server.url, **settings}),
    ):
        answer = await invoked(
            here, channel_id=CHANNEL, message_id="m1", **({"microdao_id": own} if named else {})
        )
    assert (answer["status"], answer["microdao_id"]) == ("answered", own)
    assert neighbour.posts == [f"Бачу: {SECRET}"]


async def test_a_channel_in_another_spelling_is_the_channel_that_the_service_reports(here):
    neighbour = Neighbour(channel_of(here.microdao), in_it(OLENA, SOFIA))
    async with (
        recording_server(neighbour) as server,
        here.agents(messaging={"kind": "messaging_service", "base_url": server.url}),
    ):
        first = await invoked(here, channel_id=CHANNEL.upper(), message_id="m1")
        again = await invoked(here, channel_id=CHANNEL, message_id="m1")
    assert (first["status"], again["duplicate"]) == ("answered", True)
    assert (again["run_id"], len(neighbour.posts)) == (first["run_id"], 1)


async def test_an_agent_that_the_service_does_not_list_reads_nothing(here):
    neighbour = Neighbour(channel_of(here.microdao), in_it(OLENA))
    async with (
        recording_server(neighbour) as server,
        here.agents(messaging={"kind": "messaging_service", "base_url": server.url}),
    ):
        refused = await invoked(here, "direct", channel_id=CHANNEL)
    assert (refused["http"], here.model.bodies) == (403, [])


async def test_without_a_channel_the_caller_names_the_tenant_unless_one_is_configured(
    here,
):
    await remembering(here, here.microdao)
    answer = await invoked(here, "direct", microdao_id=here.microdao)
    assert (answer["status"], answer["reply"]) == ("answered", f"Бачу: {SECRET}")
    assert (await invoked(here, "direct"))["error"]["type"] == "invalid_request"
    async with here.agents(messaging={"microdao_id": here.microdao}):
        assert (await invoked(here, "direct"))["reply"] == f"Бачу: {SECRET}"
        refused = await invoked(here, "cron", microdao_id="microdao:theirs")
    assert (refused["http"], refused["error"]["type"]) == (403, "forbidden")
