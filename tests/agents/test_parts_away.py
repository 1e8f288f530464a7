"""Parts that are away, hang or are defective: a run ends in time, with an answer or an error."""

import asyncio

import pytest

from services.agents.language import APOLOGIES
from tests.support.agents.platform import (
    SOFIA,
    blueprint,
)
from tests.support.agents.scripted_model import Thought
from tests.support.agents.tool_scenes import NAMES, UNABLE, tools_step

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_run_without_memory_is_answered_and_marked_degraded(here):
    here.door.away.add("memory")
    answer = await here.ask(await here.channel(), "Привіт")
    assert answer["status"] == "answered"
    assert (await here.run(answer["run_id"]))["degraded"] == ["memory", "memory_store"]


async def test_the_prompt_says_that_no_tool_can_be_reached(here):
    here.door.away.add("tools")
    answer = await here.ask(await here.channel(), "Які проєкти?")
    assert answer["status"] == "answered"
    assert "No tool can be reached" in here.model.bodies[0]["messages"][0]["content"]
    assert "tools" not in here.model.bodies[0]
    assert (await here.run(answer["run_id"]))["degraded"] == ["tools"]


async def test_tools_that_become_unreachable_give_failed_results(here):
    def mind(body):
        here.door.away.add("tools")
        return (
            Thought(calls=[("notes__read", {})])
            if len(here.model.bodies) == 1
            else Thought("Не можу прочитати.")
        )

    here.model.mind = mind
    answer = await here.ask(await here.channel(), "Прочитай")
    assert answer["reply"] == "Не можу прочитати."
    assert (await tools_step(here, answer))["calls"][0]["error_kind"] == "unavailable"


@pytest.mark.parametrize(
    ("text", "language"), [("Які в нас проєкти?", "uk"), ("Which projects do we have?", "en")]
)
async def test_without_a_model_one_polite_sentence_comes_in_the_channels_language(
    here, text, language
):
    here.model.script(Thought(status=500))
    channel = await here.channel()
    answer = await here.ask(channel, text)
    assert (answer["status"], answer["reply"]) == ("failed", UNABLE[language])
    assert await here.replies(channel) == [UNABLE[language]]
    here.door.away.add("llm")
    assert (await here.ask(channel, text))["status"] == "failed"
    assert await here.replies(channel) == [UNABLE[language]] * 2
    memories = {"agent_id": SOFIA, "microdao_id": here.microdao}
    assert (await here.http.get("/internal/agent-memory/items", params=memories)).json()[
        "items"
    ] == []


async def test_a_run_ends_at_its_deadline(here):
    here.use(blueprint(tools=NAMES, limits={"seconds": 1.5}))
    here.model.script(Thought("пізно", delay_s=20))
    channel = await here.channel()
    answer = await here.ask(channel, "Привіт усім")
    assert (answer["status"], answer["reply"]) == ("failed", APOLOGIES["late", "uk"])
    run = await here.run(answer["run_id"])
    assert run["error"] in {"deadline_exceeded", "upstream_timeout"}
    assert [step["ok"] for step in run["steps"] if step["kind"] == "llm"] == [False]


async def test_a_run_may_have_more_time_than_one_tool_call(here):
    here.use(blueprint(tools=NAMES, limits={"seconds": 3_600}))
    here.model.script(Thought(calls=[("notes__read", {})]), Thought("Прочитала."))
    answer = await here.ask(await here.channel(), "Прочитай")
    assert (answer["status"], answer["reply"], len(here.executed)) == ("answered", "Прочитала.", 1)


async def test_a_defect_is_answered_and_logged_at_once(here, monkeypatch):
    def defect(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("services.agents.pipeline.read_answer", defect)
    answer = await here.ask(await here.channel(), "Привіт усім")
    run = await here.run(answer["run_id"])
    assert (answer["status"], answer["reply"], run["error"], run["attempt"]) == (
        "failed",
        UNABLE["uk"],
        "internal",
        1,
    )
    assert [event["error"] for event in here.events.named("agents.defect")] == ["ZeroDivisionError"]


async def test_without_a_messaging_service_nothing_is_accepted(here):
    channel = await here.channel()
    message = await here.say(channel, "Привіт")
    here.door.away.add("workspace")
    refused = await here.invoke(channel, message)
    assert (refused["http"], refused["error"]["retryable"]) == (503, True)
    here.door.away.clear()
    assert (await here.invoke(channel, message))["status"] == "answered"
    assert len(await here.replies(channel)) == 1


async def test_a_messaging_service_that_goes_away_gets_the_reply_when_it_is_back(here):
    channel = await here.channel()

    def mind(body):
        here.door.away.add("workspace")
        asyncio.get_running_loop().call_later(1.0, here.door.away.clear)
        return Thought("Я тут.")

    here.model.mind = mind
    assert (await here.ask(channel, "Привіт"))["status"] == "answered"
    assert await here.replies(channel) == ["Я тут."]


async def test_more_runs_than_a_replica_may_hold_are_refused(here):
    may_answer = asyncio.Event()
    here.model.script(Thought("Так.", until=may_answer))
    async with here.agents(max_running=1, max_waiting=1):
        channel = await here.channel()
        ids = [await here.say(channel, f"Питання {number}") for number in range(4)]
        answers = await asyncio.gather(
            *(here.invoke(channel, message, wait="false") for message in ids)
        )
        assert sorted(answer["http"] for answer in answers) == [202, 202, 503, 503]
        may_answer.set()
        for message in ids:
            while (answer := await here.invoke(channel, message))["http"] == 503:
                await asyncio.sleep(0.2)
            assert answer["status"] == "answered"
    assert len(await here.replies(channel)) == 4
