"""Invocations over a real NATS server: answered once, kept while nobody listens, parked when
they can never be served.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

import nats
import pytest

from interfaces.nats import agents as subjects
from interfaces.nats.work_queue import REASON_HEADER
from launcher.nats import NatsServer
from tests.support.agents.chain import EARLIER, KNOWN, PROJECT, REPLY, prepare_chain, recall
from tests.support.agents.platform import OWN, SOFIA, platform
from tests.support.agents.runtime import recording_server
from tests.support.agents.scripted_model import Thought, shown
from tests.support.llm.usage_engine import AgentUsage
from tests.support.otlp import tracing_to


@pytest.fixture
async def server(tmp_path):
    async with NatsServer(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def outside(server):
    """The router's connection."""
    connection = await nats.connect(server.url)
    yield connection
    await connection.close()


@pytest.fixture
async def here(database_url, tmp_path, server):
    async with platform(database_url, tmp_path, nats_url=server.url, agents=False) as running:
        running.model.script(Thought(calls=[("projects__list", {})]), Thought("Є «Сад»."))
        yield running


def invocation(channel, message=None, agent=SOFIA, entrypoint="channel_message", **payload):
    ids = {"message_id": message} if message else {}
    return json.dumps(
        {
            "agent_id": agent,
            "entrypoint": entrypoint,
            "payload": {"channel_id": channel, **ids, **payload},
        }
    ).encode()


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not (found := await condition()):
            await asyncio.sleep(0.05)
        return found


async def replied(here, channel, count=1):
    async def enough():
        return len(await here.replies(channel)) >= count

    await until(enough)
    return await here.replies(channel)


async def connected(here):
    async def ready():
        checks = (await here.http.get("/internal/agent-runtime/health")).json()["checks"]
        return checks["nats"]["state"] == "ready"

    await until(ready)


@pytest.mark.parametrize("mode", ["native", "json", "text"])
async def test_the_whole_chain_over_nats(here, outside, mode):
    channel = await prepare_chain(here, mode)
    async with here.agents():
        await connected(here)
        await outside.publish(
            subjects.INVOKE, invocation(channel, await here.say(channel, "Які проєкти громади є?"))
        )
        assert await replied(here, channel) == [REPLY]
        first, second = here.model.bodies
        assert all(text in shown(first) for text in (EARLIER, KNOWN))
        assert PROJECT not in shown(first)
        assert PROJECT in shown(second)

        async def stored():
            return any(
                PROJECT in item["content"]
                for item in await recall(here, channel, "проєкти громади")
            )

        await until(stored)
        here.model.bodies.clear()
        here.model.script(Thought("Ми говорили про ферму."))
        await outside.publish(
            subjects.INVOKE,
            invocation(channel, await here.say(channel, "Що ти відповіла про проєкти громади?")),
        )
        await replied(here, channel, 2)
    assert "What you remember from before" in shown(here.model.bodies[0])


async def test_an_invocation_is_answered_in_the_channel_and_announced(here, outside):
    await here.project("Сад")
    usage = await outside.subscribe("usage.agent")
    await outside.flush()
    async with here.agents():
        await connected(here)
        channel = await here.channel()
        message = await here.say(channel, "Які проєкти?")
        for _ in range(3):
            await outside.publish(subjects.INVOKE, invocation(channel, message))
        assert await replied(here, channel) == ["Є «Сад»."]
        sent = (await usage.next_msg(timeout=30)).data
        event, read = json.loads(sent), AgentUsage.model_validate_json(sent)
        over_http = await here.invoke(channel, message)
    assert over_http["duplicate"] is True
    assert event["id"] == over_http["run_id"]
    assert (
        event["agent_id"],
        event["microdao_id"],
        event["outcome"],
        event["steps"],
        event["tool_calls"],
        event["prompt_tokens"],
    ) == (
        SOFIA,
        OWN,
        "answered",
        2,
        1,
        200,
    )
    assert (read.event_id, read.trigger, read.llm_calls, read.tool_calls, read.success) == (
        event["id"],
        "message",
        2,
        1,
        True,
    )
    assert "Сад" not in json.dumps(event, ensure_ascii=False)
    assert await here.replies(channel) == ["Є «Сад»."]


COMMON = {
    "event_id": str,
    "ts": str,
    "run_id": str,
    "agent_id": str,
    "microdao_id": str,
    "channel_id": str,
    "entrypoint": str,
}
NOTICES = {
    "agent.run.started": {**COMMON, "attempt": int},
    "agent.reply.sent": {**COMMON, "status": str},
    "agent.run.ended": {**COMMON, "attempt": int, "status": str, "duration_ms": int},
    "agent.error": {**COMMON, "status": str, "error_type": str},
}
"""What neighbours read, by subject: every field, always there, of this type."""


async def notices(subscription, count):
    found = [await subscription.next_msg(timeout=60) for _ in range(count)]
    return [(message.subject, json.loads(message.data)) for message in found]


def assert_shapes(announced, channel):
    for subject, notice in announced:
        assert {name: type(value) for name, value in notice.items()} == NOTICES[subject], subject
        assert datetime.fromisoformat(notice["ts"]).tzinfo is not None
        assert (
            notice["agent_id"],
            notice["microdao_id"],
            notice["channel_id"],
            notice["entrypoint"],
        ) == (
            SOFIA,
            OWN,
            channel,
            "channel_message",
        )
        assert "message_preview" not in notice
    assert len({notice["run_id"] for _, notice in announced}) == 1
    assert len({notice["event_id"] for _, notice in announced}) == len(announced)
    assert not [
        word
        for word in ("Сад", "проєкти", "Перепрошую")
        if word in json.dumps(announced, ensure_ascii=False)
    ]


async def test_a_run_is_announced_to_neighbours_without_its_contents(here, outside):
    announced = await outside.subscribe("agent.>")
    await outside.flush()
    async with here.agents():
        await connected(here)
        channel = await here.channel()
        answer = await here.ask(channel, "Які проєкти?")
        first = await notices(announced, 3)
        assert [(subject, notice.get("status")) for subject, notice in first] == [
            ("agent.run.started", None),
            ("agent.reply.sent", "answered"),
            ("agent.run.ended", "answered"),
        ]
        assert_shapes(first, channel)
        assert first[0][1]["run_id"] == answer["run_id"]

        here.model.mind = lambda body: Thought(status=400)
        assert (await here.ask(channel, "Які ще проєкти?"))["status"] == "failed"
        second = await notices(announced, 4)
        assert [(subject, notice.get("error_type")) for subject, notice in second] == [
            ("agent.run.started", None),
            ("agent.reply.sent", None),
            ("agent.error", "upstream_rejected"),
            ("agent.run.ended", None),
        ]
        assert_shapes(second, channel)

        assert (await here.invoke(channel, "gone"))["status"] == "ignored"
        third = await notices(announced, 2)
        assert [(subject, notice.get("status")) for subject, notice in third] == [
            ("agent.run.started", None),
            ("agent.run.ended", "ignored"),
        ]


async def test_a_reply_that_the_channel_refuses_is_an_error_and_was_not_sent(here, outside):
    announced = await outside.subscribe("agent.>")
    await outside.flush()
    neighbour = {
        "GET": (
            200,
            [
                {
                    "sender_id": "user:o",
                    "sender_type": "human",
                    "body": "?",
                    "created_at": "2026-01-01T00:00:00",
                }
            ],
        )
    }
    async with (
        recording_server(lambda seen: neighbour.get(seen.method, (403, {}))) as server,
        here.agents(
            messaging={"kind": "messaging_service", "base_url": server.url, "microdao_id": OWN}
        ),
    ):
        await connected(here)
        assert (await here.invoke("channel:1"))["status"] == "undelivered"
        assert [
            (subject, notice.get("status")) for subject, notice in await notices(announced, 3)
        ] == [
            ("agent.run.started", None),
            ("agent.error", "undelivered"),
            ("agent.run.ended", "undelivered"),
        ]


async def test_a_publisher_cannot_choose_the_tenant_of_a_channel(here, outside):
    async with (
        recording_server(lambda seen: (404, {})) as server,
        here.agents(messaging={"kind": "messaging_service", "base_url": server.url}),
    ):
        await connected(here)
        parked = await outside.jetstream().subscribe(subjects.PARKED)
        await outside.publish(subjects.INVOKE, invocation("channel:1", microdao_id=OWN))
        assert (await parked.next_msg(timeout=60)).headers[REASON_HEADER] == "forbidden"
    assert here.model.bodies == []


async def test_without_nats_runs_are_answered_all_the_same(here, server):
    here.nats_url = "nats://127.0.0.1:9"
    async with here.agents():
        assert (await here.ask(await here.channel(), "Які проєкти?"))["status"] == "answered"


async def test_invocations_published_while_no_runtime_runs_are_answered_later(here, outside):
    async with here.agents():
        await connected(here)  # the stream is there from now on
    channel = await here.channel()
    message = await here.say(channel, "Які проєкти?")
    await outside.publish(subjects.INVOKE, invocation(channel, message))
    async with here.agents(), here.agents():
        assert await replied(here, channel) == ["Є «Сад»."]


async def test_invocations_without_a_message_id_are_answered_once(here, outside):
    async with here.agents():
        await connected(here)
        channel = await here.channel()
        await here.say(channel, "Які проєкти?")
        for _ in range(2):
            await outside.publish(subjects.INVOKE, invocation(channel))
        await outside.publish(
            subjects.INVOKE,
            invocation(channel, entrypoint="cron", text="Нагадай про збори", microdao_id=OWN),
        )
        await replied(here, channel, 2)
        await asyncio.sleep(0.5)
        assert len(await here.replies(channel)) == 2


async def test_a_stream_that_holds_the_subject_already_is_used(here, outside):
    await outside.jetstream().add_stream(name="ROUTER", subjects=["router.>"])
    async with here.agents():
        await connected(here)
        channel = await here.channel()
        message = await here.say(channel, "Які проєкти?")
        await outside.publish(subjects.INVOKE, invocation(channel, message))
        assert await replied(here, channel) == ["Є «Сад»."]


async def test_unservable_and_too_old_invocations_are_parked_and_others_wait(
    here, outside, monkeypatch
):
    async with here.agents():
        await connected(here)
        stream = outside.jetstream()
        parked = await stream.subscribe(subjects.PARKED)
        channel = await here.channel()
        message = await here.say(channel, "Які проєкти?")
        for data in (
            b"{",
            b"[]",
            invocation(channel, message, agent="agent:nobody"),
            invocation(channel, message, microdao_id="microdao:8"),
        ):
            await outside.publish(subjects.INVOKE, data)
        reasons = [(await parked.next_msg(timeout=30)).headers[REASON_HEADER] for _ in range(4)]
        assert sorted(reasons) == ["forbidden", "invalid_request", "invalid_request", "not_found"]

        unknown = await here.channel()
        late = invocation(unknown, await here.say(unknown, "Які проєкти?"))
        monkeypatch.setattr(subjects, "PARK_AFTER_S", 0.0)
        here.door.away.add("workspace")
        await outside.publish(subjects.INVOKE, late)
        assert (await parked.next_msg(timeout=30)).headers[
            REASON_HEADER
        ] == "unavailable"  # too old
        monkeypatch.undo()
        other = invocation(channel, message)
        await outside.publish(subjects.INVOKE, other)
        await asyncio.sleep(0.5)
        here.door.away.clear()
        assert await replied(here, channel) == ["Є «Сад»."]


async def test_invocations_beyond_a_full_replica_stay_in_the_stream(here, outside):
    may_answer = asyncio.Event()
    here.model.script(Thought("Так.", until=may_answer))
    messages, room = 30, 2
    async with here.agents(max_running=1, max_waiting=1) as runtime:
        await connected(here)
        channel = await here.channel()
        for number in range(messages):
            message = await here.say(channel, f"Питання {number}")
            await outside.publish(subjects.INVOKE, invocation(channel, message))

        async def full():
            return not runtime.runs.has_room

        await until(full)
        await asyncio.sleep(1)
        info = await outside.jetstream().consumer_info(subjects.STREAM, subjects.DURABLE)
        assert (
            info.num_pending >= messages - room - 2 * subjects.FETCHERS
        )  # never delivered; what was asked for comes back
        may_answer.set()
        assert len(await replied(here, channel, messages)) == messages
    assert here.events.named("agents.nats_parked") == []


def test_refusals_are_delivered_again_after_growing_pauses():
    pauses = [subjects.delay_of(delivery) for delivery in range(1, 2_000)]
    assert pauses == sorted(pauses)
    assert (pauses[:3], pauses[-1]) == ([1.0, 2.0, 4.0], 30.0)
    assert (
        subjects.PARK_AFTER_S + pauses[-1] < subjects.QUEUE.keep_s
    )  # parked before the stream forgets it


async def test_an_invocation_continues_its_senders_trace_and_notices_carry_it(
    here, outside, collector, monkeypatch
):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    notices = await outside.subscribe("agent.reply.sent")
    await outside.flush()
    channel = await here.channel()
    message = await here.say(channel, "Які проєкти?")
    with tracing_to(collector, monkeypatch):
        async with here.agents():
            await connected(here)
            await outside.publish(
                subjects.INVOKE,
                invocation(channel, message),
                headers={"Traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
            )
            await replied(here, channel)
            notice = await notices.next_msg(timeout=60)
    attempt = collector.one(f"invoke_agent {SOFIA}")
    taken = collector.one("process router.invoke.agent")
    assert (taken.parent, attempt.parent) == ("00f067aa0ba902b7", taken.span_id)
    assert notice.headers["traceparent"] == f"00-{trace}-{attempt.span_id}-01"
