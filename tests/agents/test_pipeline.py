"""Sofia answers in a channel: real applications over HTTP, a real PostgreSQL, a scripted model."""

import asyncio

import psycopg
import pytest
import pytest_asyncio

from tests.support.agents.chain import EARLIER, KNOWN, REPLY, prepare_chain, recall
from tests.support.agents.platform import SOFIA, blueprint, shared_platform
from tests.support.agents.scripted_model import Thought, shown
from tests.support.workspace.live import event_stream, take

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(postgres, tmp_path_factory):
    async with shared_platform(postgres, tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture
def here(shared):
    shared.fresh()
    return shared


@pytest.mark.parametrize("mode", ["native", "json", "text"])
async def test_context_memory_tool_reply_and_recall_in_a_later_run(here, mode):
    channel = await prepare_chain(here, mode)
    answer = await here.ask(channel, "Які проєкти громади є?")
    assert (answer["http"], answer["status"], answer["reply"]) == (200, "answered", REPLY)
    assert await here.replies(channel) == [REPLY]

    first, _ = here.model.bodies
    assert first["messages"][0]["content"].startswith("Ти — Софія.")
    assert EARLIER in shown(first)
    assert KNOWN in shown(first)
    assert first["messages"][-1] == {"role": "user", "content": "Які проєкти громади є?"}
    assert ("tools" in first) == (mode == "native")
    assert ("projects.list" in first["messages"][0]["content"]) == (mode != "native")
    assert "Вертикальна ферма" not in shown(first)

    audit = (
        await here.http.get("/internal/tools/calls", params={"microdao_id": here.microdao})
    ).json()["calls"]
    assert [(call["tool_id"], call["ok"]) for call in audit] == [("projects.list", True)]
    run = await here.run(answer["run_id"])
    assert [step["kind"] for step in run["steps"] if step["kind"] != "tool_list"] == [
        "context", "memory", "llm", "tools", "llm", "reply", "store",
    ]  # fmt: skip
    assert (run["tool_calls"], run["prompt_tokens"], run["completion_tokens"], run["model"]) == (
        1,
        200,
        20,
        "thinker",
    )
    assert len(run["memory_ids"]) == 1

    here.model.bodies.clear()
    here.model.script(Thought("Ми говорили про ферму."))
    await here.ask(channel, "Що ти відповіла про проєкти громади?")
    recalled = [item["content"] for item in await recall(here, channel, "проєкти громади")]
    assert any("Вертикальна ферма" in content for content in recalled)
    assert "What you remember from before" in shown(here.model.bodies[0])


async def test_the_same_message_is_answered_once_however_it_is_delivered(here):
    channel = await here.channel()
    message = await here.say(channel, "Привіт")
    first = await here.invoke(channel, message)
    again = await here.invoke(channel, message)
    without_id = await here.invoke(channel)
    by_event = await here.invoke(channel, matrix_event_id="$event:example.org")
    assert first["run_id"] == again["run_id"] == without_id["run_id"] == by_event["run_id"]
    assert again["duplicate"] is True
    assert await here.replies(channel) == ["Гаразд."]
    assert len(here.model.bodies) == 1


async def test_without_waiting_the_answer_is_202_and_the_reply_comes(here):
    channel = await here.channel()
    answer = await here.invoke(channel, await here.say(channel, "Привіт"), wait="false")
    assert (answer["http"], answer["status"]) == (202, "queued")
    ended = await here.invoke(channel, (await here.messages(channel))[0]["id"])
    assert (ended["run_id"], ended["status"], ended["reply"]) == (
        answer["run_id"],
        "answered",
        "Гаразд.",
    )
    posted = [message for message in await here.messages(channel) if message["sender_id"] == SOFIA]
    assert [message["run_id"] for message in posted] == [answer["run_id"]]


async def test_a_later_message_is_no_part_of_an_earlier_question(here):
    channel = await here.channel()
    first = await here.say(channel, "Перше питання")
    await here.say(channel, "Друге питання")
    await here.invoke(channel, first)
    assert here.model.bodies[0]["messages"][-1]["content"] == "Перше питання"
    assert "Друге питання" not in shown(here.model.bodies[0])


async def test_a_question_with_a_long_backlog_behind_it_is_the_one_that_is_answered(here):
    channel = await here.channel()
    await here.say(channel, "Раніше")
    first = await here.say(channel, "Перше питання")
    for start in range(0, 420, 20):
        await asyncio.gather(*(here.say(channel, f"Далі {start + number}") for number in range(20)))
    assert (await here.invoke(channel, first))["status"] == "answered"
    assert here.model.bodies[0]["messages"][-1]["content"] == "Перше питання"
    assert "Раніше" in shown(here.model.bodies[0])
    assert "Далі" not in shown(here.model.bodies[0])


async def test_a_message_that_the_channel_does_not_hold_is_not_answered(here):
    channel = await here.channel()
    await here.say(channel, "Привіт")
    answer = await here.invoke(channel, "0197c5b0-0000-7000-8000-000000000000")
    assert (answer["status"], await here.replies(channel), here.model.bodies) == ("ignored", [], [])
    assert (await here.run(answer["run_id"]))["error"] == "not_found"


async def test_direct_questions_are_answered_to_the_caller_alone(here):
    body = {
        "agent_id": SOFIA,
        "entrypoint": "direct",
        "payload": {"microdao_id": here.microdao, "text": "Привіт"},
    }
    answer = await here.post("/internal/agent-runtime/invocations", body, 200)
    assert (answer["status"], answer["reply"]) == ("answered", "Гаразд.")
    other = await here.post("/internal/agent-runtime/invocations", body, 200)
    assert other["run_id"] != answer["run_id"]
    path = "/internal/agent-runtime/invocations"
    keyed = [
        await here.post(path, body, 200, headers={"Idempotency-Key": "збори-1".encode()})
        for _ in range(2)
    ]
    assert keyed[0]["run_id"] == keyed[1]["run_id"] != other["run_id"]
    assert keyed[1]["duplicate"] is True
    assert (
        await here.http.post(path, json=body, headers={"Idempotency-Key": "k" * 201})
    ).status_code == 400
    async with await psycopg.AsyncConnection.connect(here.database_url) as connection:
        await connection.execute(
            "SELECT set_config('daarion.microdao_id', %s, false)", (here.microdao,)
        )
        (row, *_) = await (
            await connection.execute(
                "SELECT agent_runs::text FROM agent_runs WHERE id = %s", (answer["run_id"],)
            )
        ).fetchone()
        assert "Привіт" not in row  # an ended run keeps its reply, not what it was asked


async def test_rewrite_prompt_is_appended_to_the_instructions(here):
    channel = await here.channel()
    await here.ask(channel, "Привіт", rewrite_prompt="Відповідай віршами.")
    system = here.model.bodies[0]["messages"][0]["content"]
    assert system.startswith("Ти — Софія.\n\nВідповідай віршами.")


async def test_runs_are_their_microdaos_own(here):
    channel = await here.channel()
    answer = await here.ask(channel, "Привіт")
    path = f"/internal/agent-runtime/runs/{answer['run_id']}"
    assert (await here.http.get(path, params={"microdao_id": "microdao:8"})).status_code == 404
    assert (await here.http.get(path)).status_code == 400
    assert (await here.http.get(path, headers={"X-Microdao-Id": here.microdao})).status_code == 200
    assert (
        await here.http.get(
            "/internal/agent-runtime/runs/none", params={"microdao_id": here.microdao}
        )
    ).status_code == 404
    for _ in range(4):
        await here.ask(channel, "Ще")
    seen, cursor = [], None
    while True:
        params = {
            "microdao_id": here.microdao,
            "limit": 2,
            **({"cursor": cursor} if cursor else {}),
        }
        page = (await here.http.get("/internal/agent-runtime/runs", params=params)).json()
        seen += [run["id"] for run in page["items"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 5
    assert seen[-1] == answer["run_id"]
    assert (
        await here.http.get("/internal/agent-runtime/runs", params={"microdao_id": "microdao:8"})
    ).json() == {"items": []}


async def test_agents_are_listed_and_health_is_reported(here):
    agents = (await here.http.get("/internal/agent-runtime/agents")).json()["agents"]
    assert [(agent["id"], agent["model"]) for agent in agents] == [(SOFIA, "thinker")]
    assert (await here.http.get("/internal/agent-runtime/health")).status_code in {200, 503}


async def test_steps_are_shown_in_the_channel(here):
    channel = await here.channel()
    here.model.script(Thought(calls=[("projects__list", {})]), Thought("Немає."))
    await here.ask(channel, "Які проєкти?")
    async with event_stream(
        here.http, f"/internal/messaging/channels/{channel}/events", headers={"Last-Event-ID": "0"}
    ) as events:
        seen = await take(events, 8)
    kinds = [
        event.data.get("step", event.data).get("kind") for event in seen if event.name == "run.step"
    ]
    assert kinds[:5] == ["context", "memory", "llm", "tool_call", "tool_result"]


async def test_a_small_model_chooses_among_results_instead_of_writing(here):
    answer = {
        "tool": "projects.list",
        "field": "name",
        "reply": "Проєкти: {choices}.",
        "none": "Проєктів немає.",
    }
    here.use(blueprint(first_step="required", answer=answer, limits={"steps": 2}))
    channel = await here.channel()
    here.model.script(Thought(calls=[("projects__list", {})]))
    assert (await here.ask(channel, "Які проєкти?"))["reply"] == "Проєктів немає."
    for name in ("Сад", "Поле"):
        await here.project(name)
    here.model.bodies.clear()
    by_chance = {"status": "done", "limit": 1}
    here.model.script(
        Thought(calls=[("projects__list", by_chance)]),
        Thought('{"choices": ["Сад", "Сад", "вигадка"]}'),
    )
    assert (await here.ask(channel, "Який із проєктів про яблука?"))["reply"] == "Проєкти: Сад."
    assert here.model.bodies[0]["tool_choice"] == "required"
    schema = here.model.bodies[1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["choices"]["items"]["enum"] == ["Поле", "Сад"]
    here.model.script(Thought(calls=[("projects__list", {})]), Thought("{нісенітниця"))
    assert (await here.ask(channel, "Які проєкти?"))["reply"] == "Проєкти: Поле, Сад."


async def test_while_a_small_model_answers_the_agent_does_what_it_can(here):
    answer = {
        "tool": "projects.list",
        "field": "name",
        "reply": "Лише проєкти: {choices}.",
        "none": "Немає.",
    }
    here.use(blueprint(small={"models": ["thinker"], "answer": answer}, write_after_untrusted=True))
    await here.project("Сад")
    here.model.script(Thought(calls=[("projects__list", {})]), Thought('{"choices": ["Сад"]}'))
    channel = await here.channel()
    assert (await here.ask(channel, "Привіт"))["reply"] == "Лише проєкти: Сад."
    assert [tool["function"]["name"] for tool in here.model.bodies[0]["tools"]] == [
        "projects__list"
    ]
    here.use(blueprint(small={"models": ["another"], "answer": answer}))
    here.model.script(Thought("Вітаю!"))
    assert (await here.ask(channel, "Привіт"))["reply"] == "Вітаю!"


async def test_a_small_model_that_answers_unexpectedly_says_nothing_of_its_own(here):
    """The model was not known beforehand, or another one answered: its own words are not shown to
    people.
    """
    answer = {
        "tool": "projects.list",
        "field": "name",
        "reply": "Лише проєкти: {choices}.",
        "none": "Немає.",
    }
    here.use(blueprint(small={"models": ["thinker"], "answer": answer}, write_after_untrusted=True))
    await here.project("Сад")
    whole = here.door.apps["llm"]

    async def blind(scope, receive, send):
        if scope["path"] == "/internal/llm/models":
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"away"})
        else:
            await whole(scope, receive, send)

    here.door.apps["llm"] = blind
    try:
        channel = await here.channel()
        async with here.agents():  # a runtime that has not heard of any model yet
            here.model.script(
                Thought("вільні слова"),
                Thought(calls=[("projects__list", {})]),
                Thought('{"choices": ["Сад"]}'),
            )
            answer = await here.ask(channel, "Привіт")
            assert answer["reply"] == "Лише проєкти: Сад."
            assert (await here.run(answer["run_id"]))["model"] == "thinker"
            here.model.script(Thought("вільні слова"), Thought("знову вільні слова"))
            failed = await here.ask(channel, "Привіт")
        assert failed["status"] == "failed"
        assert "вільні" not in " ".join(await here.replies(channel))
    finally:
        here.door.apps["llm"] = whole


async def test_a_model_that_may_only_choose_says_nothing_without_results(here):
    answer = {
        "tool": "projects.list",
        "field": "name",
        "reply": "Проєкти: {choices}.",
        "none": "Немає.",
    }
    here.use(blueprint(first_step="required", answer=answer, limits={"steps": 2}))
    here.model.script(Thought("вільні слова"))
    answer = await here.ask(await here.channel(), "Які проєкти?")
    assert answer["status"] == "failed"
    assert "вільні" not in answer["reply"]


async def test_no_more_of_the_channel_is_shown_than_the_blueprint_says(here):
    here.use(blueprint(history=2))
    channel = await here.channel()
    trigger = None
    for number in range(6):
        trigger = await here.say(channel, f"слово{number}")
    for number in range(6, 10):
        await here.say(channel, f"слово{number}")
    here.model.bodies.clear()
    here.model.script(Thought("Гаразд."))
    await here.invoke(channel, trigger)
    said = shown(here.model.bodies[-1])
    assert [f"слово{number}" in said for number in range(10)] == [False] * 3 + [True] * 3 + [
        False
    ] * 4
