"""One reply per message: delivered twice or at once, over two replicas, across kills, and to a
service that knows no runs.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from services.agents.language import APOLOGIES
from tests.support.agents.child import process, until
from tests.support.agents.platform import OLENA, OWN, SOFIA, blueprint, extra_tool, platform
from tests.support.agents.runtime import recording_server
from tests.support.agents.scripted_model import Thought, shown

TOOLS = (extra_tool("notes.write", "write"), extra_tool("notes.read", "read"))
NAMES = ["notes.write", "notes.read"]


@pytest.fixture
async def here(database_url, tmp_path):
    async with platform(database_url, tmp_path, tools=TOOLS, agents=False) as running:
        running.use(blueprint(tools=NAMES, write_after_untrusted=True))
        yield running


async def test_delivered_many_times_at_once_to_two_replicas_it_is_answered_once(here):
    async with here.agents(), here.agents():
        channel = await here.channel()
        message = await here.say(channel, "Привіт")
        answers = await asyncio.gather(*(here.invoke(channel, message) for _ in range(20)))
        assert len({answer["run_id"] for answer in answers}) == 1
        assert {answer["status"] for answer in answers} == {"answered"}
        assert await here.replies(channel) == ["Гаразд."]


async def test_a_killed_process_loses_nothing_and_repeats_no_effect(here, tmp_path):
    """Killed between a tool call and the reply: another replica resumes the same run,
    without a second effect.
    """
    asked = asyncio.Event()

    def mind(body):
        if len(here.model.bodies) == 1:
            return Thought(calls=[("notes__write", {"text": "раз"})])
        if not asked.is_set():
            asked.set()
            return Thought("ніколи", delay_s=60)
        return Thought("Записала.")

    here.model.mind = mind
    channel = await here.channel()
    message = await here.say(channel, "Запиши")
    async with process(here, tmp_path) as (child, url):
        body = {
            "agent_id": SOFIA,
            "entrypoint": "channel_message",
            "payload": {"channel_id": channel, "message_id": message},
        }
        taken = await here.http.post(f"{url}/invocations", json=body, params={"wait": "false"})
        assert taken.status_code == 202
        async with asyncio.timeout(60):
            await asked.wait()
        child.kill()
        await child.wait()
    assert await here.replies(channel) == []
    async with here.agents():
        answer = await here.invoke(channel, message)
        assert (answer["run_id"], answer["status"]) == (taken.json()["run_id"], "answered")
        run = await here.run(answer["run_id"])
    assert run["attempt"] == 2
    assert await here.replies(channel) == ["Записала."]
    assert [execution.args for execution in here.executed] == [{"text": "раз"}]
    tools = [call for step in run["steps"] if step["kind"] == "tools" for call in step["calls"]]
    assert [call["replayed"] for call in tools] == [True]


async def test_a_stopped_process_hands_its_runs_over_at_once_and_knows_no_ray(here, tmp_path):
    slow = asyncio.Event()

    def mind(body):
        if not slow.is_set():
            slow.set()
            return Thought("ніколи", delay_s=60)
        return Thought("Я тут.")

    here.model.mind = mind
    channel = await here.channel()
    message = await here.say(channel, "Привіт")
    async with process(here, tmp_path, lease_s=600) as (child, url):
        body = {
            "agent_id": SOFIA,
            "entrypoint": "channel_message",
            "payload": {"channel_id": channel, "message_id": message},
        }
        assert (
            await here.http.post(f"{url}/invocations", json=body, params={"wait": "false"})
        ).status_code == 202
        async with asyncio.timeout(60):
            await slow.wait()
        maps = Path(f"/proc/{child.pid}/maps").read_text()
        assert "/ray/" not in maps
        child.terminate()
        async with asyncio.timeout(60):
            assert await child.wait() == 0
    async with here.agents():
        assert (await here.invoke(channel, message))["status"] == "answered"
    assert await here.replies(channel) == ["Я тут."]


async def test_killed_while_posting_the_reply_comes_once(here):
    """The post was accepted, but the run did not learn of it: the second attempt finds the same
    message.
    """
    channel = await here.channel()
    async with here.agents():
        answer = await here.ask(channel, "Привіт")
    async with await psycopg.AsyncConnection.connect(
        here.database_url, autocommit=True
    ) as connection:
        await connection.execute("SELECT set_config('daarion.microdao_id', %s, false)", (OWN,))
        await connection.execute(
            "UPDATE agent_runs SET state = 'posting', outcome = NULL, finished_at = NULL, "
            "leased_until = now() - interval '1 second'"
        )
    async with here.agents():

        async def ended():
            return (await here.run(answer["run_id"]))["status"] == "answered"

        await until(ended)
    assert await here.replies(channel) == ["Гаразд."]


def theirs(server):
    return {"kind": "messaging_service", "base_url": server.url, "microdao_id": OWN}


class Neighbour:
    """A messaging-service without ids: keeps messages, and fails as the test asks."""

    def __init__(self):
        self.messages = [
            {
                "sender_id": OLENA,
                "sender_type": "human",
                "content_preview": "Привіт",
                "created_at": "2026-01-01T00:00:00",
            }
        ]
        self.posts = 0
        self.keep, self.status = True, 200
        self.busy = []

    def __call__(self, seen):
        if seen.method == "GET":
            return 200, self.messages[::-1]
        if self.busy:
            return self.busy.pop(0), {}
        self.posts += 1
        if self.keep:
            now = "2099-01-01T00:00:00"
            self.messages.append(
                {
                    "sender_id": SOFIA,
                    "sender_type": "agent",
                    "content_preview": seen.body["text"][:500],
                    "created_at": now,
                }
            )
        return self.status, {}


@pytest.mark.parametrize(
    ("keep", "status", "outcome", "shown"),
    [
        (True, 200, "answered", 1),
        (True, 502, "answered", 1),
        (False, 502, "indeterminate", 0),
        (False, 403, "undelivered", 0),
    ],
)
async def test_a_service_that_knows_no_runs_gets_at_most_one_message(
    here, keep, status, outcome, shown
):
    neighbour = Neighbour()
    neighbour.keep, neighbour.status = keep, status
    async with recording_server(neighbour) as server, here.agents(messaging=theirs(server)):
        first = await here.invoke("channel:1", microdao_id=OWN)
        again = await here.invoke("channel:1", microdao_id=OWN)
        unnamed = await here.invoke("channel:1")
    assert first["status"] == again["status"] == unnamed["status"] == outcome
    assert first["run_id"] == again["run_id"] == unnamed["run_id"]
    assert neighbour.posts == 1
    assert sum(message["sender_id"] == SOFIA for message in neighbour.messages) == shown


async def test_a_reply_over_the_quota_of_messages_is_given_up_at_once(here):
    refusal = {"type": "over_limit", "message": "quota", "retryable": False, "request_id": "r"}
    neighbour = Neighbour()

    def full(seen):
        answer = neighbour(seen)
        return answer if seen.method == "GET" else (429, {"error": refusal})

    async with recording_server(full) as server, here.agents(messaging=theirs(server)):
        answer = await here.invoke("channel:1", microdao_id=OWN)
    assert (answer["status"], neighbour.posts) == ("undelivered", 1)


@pytest.mark.parametrize("refusals", [1, 4])
async def test_a_post_that_was_certainly_not_taken_is_repeated(here, refusals, monkeypatch):
    """Refusals that outlast one attempt's patience are met by the next attempt."""
    monkeypatch.setattr("services.agents.run_attempts.POSTPONE_S", 0.1)
    neighbour = Neighbour()
    neighbour.busy = [429, 503, 503, 429][:refusals]
    async with (
        recording_server(neighbour) as server,
        here.agents(messaging=theirs(server), lease_s=2),
    ):
        answer = await here.invoke("channel:1", microdao_id=OWN)
        run = await here.run(answer["run_id"])
    assert (answer["status"], neighbour.posts, len(neighbour.busy)) == ("answered", 1, 0)
    assert (len([step for step in run["steps"] if step["kind"] == "reply"]) > 1) == (refusals > 1)


async def test_an_older_message_with_the_same_text_is_not_taken_for_the_reply(here):
    neighbour = Neighbour()
    neighbour.keep, neighbour.status = False, 502

    def mind(body):
        now = datetime.now(UTC) - timedelta(seconds=5)
        neighbour.messages.append(
            {
                "sender_id": SOFIA,
                "sender_type": "agent",
                "content_preview": "Гаразд.",
                "created_at": now.isoformat(),
            }
        )
        return Thought("Гаразд.")

    here.model.mind = mind
    async with recording_server(neighbour) as server, here.agents(messaging=theirs(server)):
        assert (await here.invoke("channel:1", microdao_id=OWN))["status"] == "indeterminate"


async def test_a_message_in_the_workspace_invokes_by_itself_and_every_one_is_answered(
    database_url, tmp_path
):
    async with platform(database_url, tmp_path, dispatch=True) as here:
        here.model.mind = lambda body: Thought("Чую: " + body["messages"][-1]["content"])
        channels = [await here.channel() for _ in range(5)]
        for number in range(3):
            await asyncio.gather(*(here.say(channel, f"Питання {number}") for channel in channels))

        async def answered():
            return all([len(await here.replies(channel)) == 3 for channel in channels])

        await until(answered)
        await asyncio.sleep(0.5)
        for channel in channels:
            assert sorted(await here.replies(channel)) == [
                f"Чую: Питання {number}" for number in range(3)
            ]


async def test_an_empty_message_is_answered_without_a_model(here):
    neighbour = Neighbour()
    neighbour.messages[0]["content_preview"] = " \n "
    async with recording_server(neighbour) as server, here.agents(messaging=theirs(server)):
        answer = await here.invoke("channel:1", microdao_id=OWN)
    assert (answer["status"], answer["reply"]) == ("failed", APOLOGIES["empty", "uk"])
    assert here.model.bodies == []


@pytest.mark.parametrize(
    ("ages_s", "asked"), [((10, -60), "перше"), ((20, 10), "друге"), ((-50, -60), "друге")]
)
async def test_without_message_ids_a_run_answers_the_newest_message_at_its_invocation(
    here, ages_s, asked
):
    """A later message has a run of its own; if only clocks differ, the newest is answered."""
    neighbour, now = Neighbour(), datetime.now(UTC)
    neighbour.messages = [
        {
            "sender_id": OLENA,
            "sender_type": "human",
            "content_preview": f"Питання {word}",
            "created_at": (now - timedelta(seconds=age)).replace(tzinfo=None).isoformat(),
        }
        for word, age in zip(("перше", "друге"), ages_s, strict=True)
    ]
    here.model.bodies.clear()
    async with recording_server(neighbour) as server, here.agents(messaging=theirs(server)):
        answer = await here.invoke("channel:1", "m1", microdao_id=OWN)
        assert answer["status"] == "answered"
    assert here.model.bodies[-1]["messages"][-1]["content"].count(f"Питання {asked}") == 1
    assert ("Питання друге" in shown(here.model.bodies[-1])) == (asked == "друге")
