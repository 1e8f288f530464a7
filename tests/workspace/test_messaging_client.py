"""The client of messaging services: against the real workspace over HTTP, and against a server with
the neighbours' URLs.
"""

import asyncio
import uuid
from datetime import datetime
from urllib.parse import quote

import httpx
import pytest

from backends.http.client import presenting
from backends.http.messaging import NeighbourMessaging, WorkspaceMessaging, open_messaging
from configs.messaging import MessagingSettings
from contracts.agents.invocations import AgentInvocation
from contracts.deadline import Deadline
from contracts.errors import (
    ConfigurationError,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    Unauthorized,
    Unavailable,
    Unreachable,
    UpstreamInvalidResponse,
)
from contracts.workspace.messaging_service import MAX_MESSAGE_CHARS, RunStep
from services.agents.channel_tenants import ChannelTenants
from tests.support.agents.runtime import recording_server
from tests.support.workspace.application import PREFIX, served_workspace
from tests.support.workspace.live import event_stream, take

OWN = "microdao:7"
OLENA, SOFIA = "user:olena", "agent:sofia"
SOON = 30.0


def deadline(seconds=SOON):
    return Deadline.after(seconds)


@pytest.fixture
async def replica(database_url, events):
    async with served_workspace(database_url, events, secrets=("inside", None)) as running:
        yield running


@pytest.fixture
async def client(replica):
    made = open_messaging("workspace", replica.url, presenting("inside"))
    assert isinstance(made, WorkspaceMessaging)
    assert made.deduplicates_by_run_id
    yield made
    await made.close()


@pytest.fixture
async def http(replica):
    async with httpx.AsyncClient(
        base_url=f"{replica.url}{PREFIX}", headers={"X-Internal-Secret": "inside"}, timeout=30
    ) as outside:
        yield outside


@pytest.fixture
async def channel(http):
    return (
        await http.post(
            "/channels", json={"name": "Ідеї", "microdao_id": OWN, "members": [OLENA, SOFIA]}
        )
    ).json()["id"]


async def test_a_conversation_with_the_workspace(client, http, channel):
    for number in range(5):
        await http.post(
            f"/channels/{channel}/messages", json={"sender_id": OLENA, "text": f"слово {number}"}
        )
    await client.post_as_agent(SOFIA, channel, "відповідь", "run:1", deadline())
    (posted,) = await client.recent_messages(channel, 1, deadline())
    await client.post_as_agent(SOFIA, channel, "інша відповідь", "run:1", deadline())
    recent = await client.recent_messages(channel, 3, deadline())
    assert [message.text for message in recent] == ["слово 3", "слово 4", "відповідь"]
    assert [message.sender_type for message in recent] == ["human", "human", "agent"]
    assert recent[-1] == posted, "a repeated post shows no second message"
    assert posted.run_id == "run:1"
    found = await client.channel(channel, deadline())
    assert (found.microdao_id, found.members, found.name) == (OWN, [OLENA, SOFIA], "Ідеї")


async def test_the_longest_reply_fits(client, channel):
    text = "ї" * MAX_MESSAGE_CHARS
    await client.post_as_agent(SOFIA, channel, text, "run:long", deadline())
    assert (await client.recent_messages(channel, 1, deadline()))[0].text == text
    with pytest.raises(InvalidRequest):
        await client.post_as_agent(SOFIA, channel, text + "!", "run:longer", deadline())


async def test_steps_are_shown_live(client, http, channel):
    async with event_stream(http, f"/channels/{channel}/events") as events:
        assert await anext(events) is None
        step = RunStep(
            index=0, kind="tool_call", detail={"tool_id": "projects.list", "ms": 3.5, "ok": True}
        )
        await client.run_steps(SOFIA, channel, "run:1", [step], deadline())
        (shown,) = await take(events, 1)
    assert (shown.name, shown.data["run_id"], shown.data["detail"]) == (
        "run.step",
        "run:1",
        step.detail,
    )


async def test_refusals_become_leaves_of_the_error_tree(client, replica, channel):
    with pytest.raises(NotFound):
        await client.recent_messages(str(uuid.uuid4()), 5, deadline())
    with pytest.raises(NotFound):
        await client.channel("channel:../../health?x=1#y", deadline())
    with pytest.raises(Forbidden):
        await client.post_as_agent("agent:stranger", channel, "x", "r", deadline())
    stranger = WorkspaceMessaging(replica.url, presenting(None))
    with pytest.raises(Unauthorized):
        await stranger.recent_messages(channel, 5, deadline())
    await stranger.close()


async def test_a_service_that_is_away_hangs_or_babbles(client):
    nobody = WorkspaceMessaging("http://127.0.0.1:9", presenting(None))
    with pytest.raises(Unavailable):
        await nobody.recent_messages("c", 5, deadline())
    await nobody.close()

    async def late(_):
        await asyncio.sleep(30)
        return 200, []

    cases = [
        (late, DeadlineExceeded),
        (lambda seen: (200, b"<html>"), UpstreamInvalidResponse),
        (lambda seen: (200, {"messages": []}), UpstreamInvalidResponse),
        (lambda seen: (200, [{"a": 1}]), UpstreamInvalidResponse),
        (lambda seen: (200, b"[" + b" " * (9 << 20) + b"]"), UpstreamInvalidResponse),
        (lambda seen: (502, b"<html>"), Unavailable),
        (lambda seen: (302, b"", {"location": "http://127.0.0.1:9/"}), InvalidRequest),
    ]
    for answer, expected in cases:
        async with recording_server(answer) as server:
            speaking = WorkspaceMessaging(server.url, presenting(None))
            with pytest.raises(expected):
                await speaking.recent_messages("c", 5, deadline(0.5 if answer is late else SOON))
            await speaking.close()


class Neighbour:
    """The neighbours' service: other paths, newest first or not, previews, and posts by query
    parameters alone.
    """

    def __init__(self, *, takes_json):
        self.takes_json = takes_json
        self.posts = []

    def __call__(self, seen):
        if seen.method == "GET" and seen.path == "/api/messaging/channels/ch-1/messages":
            if "before" in seen.query:  # a time, and nothing else
                try:
                    return 200, [] if datetime.fromisoformat(seen.query["before"]).tzinfo else None
                except ValueError:
                    return 422, {
                        "detail": [{"loc": ["query", "before"], "msg": "invalid datetime format"}]
                    }
            return 200, [
                {
                    "sender_id": OLENA,
                    "sender_type": "human",
                    "content_preview": "друге",
                    "created_at": "2026-03-01T10:00:02",
                },
                {
                    "sender_id": SOFIA,
                    "sender_type": "agent",
                    "body": "третє",
                    "created_at": "2026-03-01T13:00:03+03:00",
                },
                {
                    "sender_id": OLENA,
                    "sender_type": "human",
                    "content_preview": None,
                    "created_at": "2026-03-01T10:00:09Z",
                },
                {
                    "sender_id": OLENA,
                    "sender_type": "human",
                    "body": "перше",
                    "created_at": "2026-03-01T10:00:01Z",
                },
            ]
        if seen.method == "POST" and seen.path == "/internal/agents/agent:sofia/post-to-channel":
            fields = seen.query if "text" in seen.query else seen.body if self.takes_json else None
            if not fields:
                return 422, {"detail": [{"loc": ["query", "channel_id"], "msg": "field required"}]}
            self.posts.append((fields["channel_id"], fields["text"]))
            return 200, {"status": "ok", "message_id": "m-1"}
        return 404, {"detail": "Not Found"}


@pytest.fixture(params=["json", "query"])
def neighbour(request):
    return Neighbour(takes_json=request.param == "json")


async def test_the_neighbours_service(neighbour):
    async with recording_server(neighbour) as server:
        client = open_messaging("messaging_service", server.url, presenting("their-secret"))
        assert isinstance(client, NeighbourMessaging)
        assert not client.deduplicates_by_run_id
        recent = await client.recent_messages("ch-1", 50, deadline())
        assert [message.text for message in recent] == ["перше", "друге", "третє"]
        assert (await client.recent_messages("ch-1", 2, deadline()))[0].text == "друге"
        assert await client.recent_messages("ch-1", 2, deadline(), before=recent[0]) == []
        text = "є & ні? #так\nновий рядок"
        for run in ("run:1", "run:2"):
            await client.post_as_agent(SOFIA, "ch-1", text, run, deadline())
        assert neighbour.posts == [("ch-1", text)] * 2
        requests = [seen for seen in server.seen if seen.method == "POST"]
        assert len(requests) == (
            2 if neighbour.takes_json else 3
        )  # the client remembers the form that worked
        assert {seen.headers["x-internal-secret"] for seen in server.seen} == {"their-secret"}
        assert requests[-1].headers["idempotency-key"] == "run:2"
        assert await client.channel("ch-1", deadline()) is None
        await client.run_steps(SOFIA, "ch-1", "run:1", [RunStep(index=0, kind="llm")], deadline())
        with pytest.raises(NotFound):
            await client.recent_messages("ch-2", 5, deadline())
        await client.close()


@pytest.mark.parametrize("before", [[], [{"member_id": OLENA}]])
async def test_an_agent_that_was_just_added_is_a_member(before):
    members = before

    def answer(seen):
        return 200, members if seen.path.endswith("/members") else {
            "id": "ch-1",
            "microdao_id": OWN,
        }

    given = {
        "agent_id": SOFIA,
        "entrypoint": "channel_message",
        "payload": {"channel_id": "ch-1", "message_id": "m"},
    }
    async with recording_server(answer) as server:
        client = NeighbourMessaging(server.url, presenting(None))
        channels = ChannelTenants(client, lambda _: None)
        with pytest.raises(Forbidden):
            await channels.place(AgentInvocation.model_validate(given), deadline())
        members = [*before, {"member_id": SOFIA}]
        for _ in range(2):
            placed = await channels.place(AgentInvocation.model_validate(given), deadline())
            assert placed == (OWN, "ch-1")
        await client.close()
    assert len(server.seen) == 4, "what is known of a member is kept"


async def test_an_odd_member_does_not_hide_whose_channel_it_is():
    listed = [{"member_id": SOFIA}, {"member_id": None}, {"member_id": 7}, {"name": "x"}, "y", None]

    def answer(seen):
        return 200, listed if seen.path.endswith("/members") else {"id": "ch-1", "microdao_id": OWN}

    async with recording_server(answer) as server:
        client = NeighbourMessaging(server.url, presenting(None))
        found = await client.channel("ch-1", deadline())
        await client.close()
    assert (found.microdao_id, found.members) == (OWN, [SOFIA])


async def test_a_long_reply_never_becomes_a_long_url():
    for takes_json in (True, False):
        neighbour = Neighbour(takes_json=takes_json)
        async with recording_server(neighbour) as server:
            client = NeighbourMessaging(server.url, presenting(None))
            texts = ["ї" * 20_000, "ї" * 1_100, "a b/&…" * 100, "🙂" * 5_000]
            for text in texts:
                await client.post_as_agent(SOFIA, "ch-1", text, "r", deadline())
            await client.close()
        posted = [text for _, text in neighbour.posts]
        if takes_json:
            assert posted == texts
            continue
        assert posted[1:3] == texts[1:3]
        for shown, text in ((posted[0], texts[0]), (posted[3], texts[3])):
            assert shown.endswith("…")
            assert text.startswith(shown[:-1])
            assert 6_900 < len(quote(shown)) <= 7_000


async def test_refused_and_unreachable_posts_are_distinguished_from_unknown_outcomes():
    for status, expected in ((429, RateLimited), (503, Overloaded), (502, Unavailable)):
        async with recording_server(lambda seen, status=status: (status, {})) as server:
            client = NeighbourMessaging(server.url, presenting(None))
            with pytest.raises(expected) as raised:
                await client.post_as_agent(SOFIA, "ch-1", "x", "r", deadline())
            assert type(raised.value) is expected
            await client.close()
    nobody = NeighbourMessaging("http://127.0.0.1:9", presenting(None))
    with pytest.raises(Unreachable):
        await nobody.post_as_agent(SOFIA, "ch-1", "x", "r", deadline())
    await nobody.close()


async def test_a_post_of_unknown_outcome_is_not_repeated_in_the_other_form():
    async with recording_server(lambda seen: (500, {})) as server:
        client = NeighbourMessaging(server.url, presenting(None))
        with pytest.raises(Unavailable):
            await client.post_as_agent(SOFIA, "ch-1", "x", "r", deadline())
        await client.close()
    assert len(server.seen) == 1


def test_where_the_service_is():
    def place(**settings):
        variables = {"THEIRS": "t", "DAARION_INTERNAL_SECRET": "own", "SHARED": "own"}
        return MessagingSettings(**settings).place("http://127.0.0.1:8123", variables.get)

    assert place() == ("http://127.0.0.1:8123", None)
    theirs = {"kind": "messaging_service", "base_url": "https://messaging.example/base/"}
    assert place(**theirs, secret_env="THEIRS") == ("https://messaging.example/base", "t")
    assert place(**theirs) == (
        "https://messaging.example/base",
        None,
    )  # the own secret is for the own ingress alone
    assert place(base_url="http://elsewhere:1") == ("http://elsewhere:1", None)
    with pytest.raises(ConfigurationError):
        place(secret_env="UNSET")
    assert place(secret_env="SHARED") == ("http://127.0.0.1:8123", "own")
    here = "http://localhost:8123"
    assert place(base_url=here, secret_env="DAARION_INTERNAL_SECRET") == (here, "own")
    for ours in ("DAARION_INTERNAL_SECRET", "SHARED"):
        with pytest.raises(ConfigurationError):
            place(**theirs, secret_env=ours)
    with pytest.raises(ValueError):
        MessagingSettings(kind="messaging_service")
    for wrong in ("ftp://x", "http://", "http://u:p@x", "http://x/?a=1"):
        with pytest.raises(ValueError):
            MessagingSettings(base_url=wrong)
