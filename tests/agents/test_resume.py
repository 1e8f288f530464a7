"""A run is resumed after a crash: with the same steps, tools and call ids, and everything is done
once.
"""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from backends.agents.runs import PostgresRuns
from tests.support.agents.child import process, until
from tests.support.agents.platform import OWN, SOFIA, blueprint, extra_tool, platform
from tests.support.agents.scripted_model import Thought, shown

TOOLS = (extra_tool("notes.write", "write"), extra_tool("notes.read", "read"))
NAMES = ["notes.write", "notes.read"]


@pytest.fixture
async def here(database_url, tmp_path):
    async with platform(database_url, tmp_path, tools=TOOLS, agents=False) as running:
        running.use(blueprint(tools=NAMES, write_after_untrusted=True))
        yield running


class Scene:
    """A model that thinks `before` and then hangs until the process is killed; then it thinks
    `after`.
    """

    def __init__(self, here, before, after):
        self.hangs = asyncio.Event()
        self._before, self._after = list(before), after
        here.model.mind = self

    def __call__(self, body):
        if self._before:
            return self._before.pop(0)
        if not self.hangs.is_set():
            self.hangs.set()
            return Thought("ніколи", delay_s=60)
        return self._after


async def killed(here, folder, channel, message, moment):
    """Lets a process take the run and kills it at `moment`."""
    async with process(here, folder) as (child, url):
        body = {
            "agent_id": SOFIA,
            "entrypoint": "channel_message",
            "payload": {"channel_id": channel, "message_id": message},
        }
        assert (
            await here.http.post(f"{url}/invocations", json=body, params={"wait": "false"})
        ).status_code == 202
        async with asyncio.timeout(60):
            await moment.wait()
        child.kill()
        await child.wait()


async def calls_of(here, answer):
    steps = (await here.run(answer["run_id"]))["steps"]
    return [call for step in steps if step["kind"] == "tools" for call in step["calls"]]


async def test_a_call_after_an_empty_answer_keeps_its_id(here, tmp_path):
    """Steps without a call are counted, so the second attempt gives the write the same id as the
    first, and it happens once.
    """
    scene = Scene(
        here,
        [Thought(""), Thought(calls=[("notes__write", {"text": "раз"})])],
        Thought("Записала."),
    )
    channel = await here.channel()
    message = await here.say(channel, "Запиши")
    await killed(here, tmp_path, channel, message, scene.hangs)
    async with here.agents():
        answer = await here.invoke(channel, message)
        calls = await calls_of(here, answer)
    assert (answer["status"], answer["reply"]) == ("answered", "Записала.")
    assert [execution.args for execution in here.executed] == [{"text": "раз"}]
    assert [(call["call_id"], call["replayed"]) for call in calls] == [
        (f"run-{answer['run_id']}-1-0", True)
    ]


def without(here, name, method, path):
    """Takes one route of an application away; returns the whole application."""
    whole = here.door.apps[name]

    async def partly(scope, receive, send):
        if (scope["method"], scope["path"]) == (method, path):
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"away"})
        else:
            await whole(scope, receive, send)

    here.door.apps[name] = partly
    return whole


async def test_recorded_calls_are_repeated_by_id_even_without_a_list_of_tools(here, tmp_path):
    """The second attempt can list no tools."""
    scene = Scene(here, [Thought(calls=[("notes__write", {"text": "раз"})])], Thought("Записала."))
    here.use(blueprint(tools=[*NAMES, "projects.list"], write_after_untrusted=True))
    channel = await here.channel()
    message = await here.say(channel, "Запиши")
    await killed(here, tmp_path, channel, message, scene.hangs)
    without(here, "tools", "GET", "/internal/tools")
    async with here.agents():
        ended = await here.invoke(channel, message)
        calls = await calls_of(here, ended)
        run = await here.run(ended["run_id"])
    assert (ended["status"], ended["reply"]) == ("answered", "Записала.")
    assert [(call["tool_id"], call["ok"], call["replayed"]) for call in calls] == [
        ("notes.write", True, True)
    ]
    assert len(here.executed) == 1
    assert '"done":true' in shown(here.model.bodies[-1])
    assert run["tool_calls"] == 1


async def test_killed_between_post_and_store_both_come_once(here, tmp_path):
    moment = asyncio.Event()
    memory = here.door.apps["memory"]

    async def holding(scope, receive, send):
        if scope["path"] == "/internal/agent-memory/store" and not moment.is_set():
            moment.set()
            await asyncio.sleep(60)
        await memory(scope, receive, send)

    here.door.apps["memory"] = holding
    channel = await here.channel()
    message = await here.say(channel, "Котра година?")
    await killed(here, tmp_path, channel, message, moment)
    assert await here.replies(channel) == ["Гаразд."]
    async with here.agents():
        answer = await here.invoke(channel, message)
        assert (answer["status"], (await here.run(answer["run_id"]))["degraded"]) == (
            "answered",
            [],
        )
    assert await here.replies(channel) == ["Гаразд."]
    assert len(here.model.bodies) == 1
    items = (
        await here.http.get(
            "/internal/agent-memory/items", params={"agent_id": SOFIA, "microdao_id": OWN}
        )
    ).json()["items"]
    assert len([item for item in items if "Котра година?" in item["content"]]) == 1


async def test_a_reply_is_given_up_by_the_time_of_its_posting_not_by_the_runs_age(
    here, monkeypatch
):
    monkeypatch.setattr("services.agents.run_attempts.POSTPONE_S", 0.1)
    channel = await here.channel()
    async with here.agents():
        old, tried = [await here.ask(channel, f"Питання {number}") for number in range(2)]
    lapsed = (
        "state = 'posting', outcome = NULL, finished_at = NULL, "
        "leased_until = now() - interval '1 second'"
    )
    for run, column in ((old, "created_at"), (tried, "posting_since")):
        await change(here, run, f"{lapsed}, {column} = now() - interval '1 hour'")
    here.door.away.add("workspace")
    async with here.agents(lease_s=1):
        await until(lambda: is_ended(here, tried))
        assert (await here.run(tried["run_id"]))["status"] == "undelivered"
        await until(lambda: is_postponed(here, old))
        assert (await here.run(old["run_id"]))["status"] == "running"
        here.door.away.clear()
        await until(lambda: is_ended(here, old))
        assert (await here.run(old["run_id"]))["status"] == "answered"


@pytest.mark.parametrize(
    ("model", "ended"),
    [
        (Thought("Я тут."), ("answered", None)),
        (Thought(status=400), ("failed", "upstream_rejected")),
    ],
)
async def test_the_error_of_a_run_is_that_of_its_latest_attempt(here, model, ended):
    here.model.script(Thought(status=500))
    async with here.agents():
        answer = await here.ask(await here.channel(), "Привіт")
        assert (await here.run(answer["run_id"]))["error"] == "upstream_unavailable"
    here.model.script(model)
    await change(
        here,
        answer,
        "state = 'running', outcome = NULL, finished_at = NULL, posting_since = NULL, reply = NULL,"
        " steps = '{}', leased_until = now() - interval '1 second'",
    )
    async with here.agents(lease_s=1):
        await until(lambda: is_ended(here, answer))
        run = await here.run(answer["run_id"])
    assert (run["status"], run.get("error")) == ended


async def change(here, answer, assignments):
    """Changes the stored run of an answer, as a crashed replica may have left it."""
    async with await psycopg.AsyncConnection.connect(
        here.database_url, autocommit=True
    ) as connection:
        await connection.execute("SELECT set_config('daarion.microdao_id', %s, false)", (OWN,))
        statement = f"UPDATE agent_runs SET {assignments} WHERE id = %s"
        await connection.execute(statement.encode(), (answer["run_id"],))


async def is_ended(here, answer):
    return (await here.run(answer["run_id"])).get("finished_at") is not None


async def is_postponed(here, answer):
    return answer["run_id"] in [
        event["run_id"] for event in here.events.named("agents.run_postponed")
    ]


async def test_a_defect_in_the_upkeep_is_reported_and_ends_nothing(here, tmp_path, monkeypatch):
    scene = Scene(here, [], Thought("Я тут."))
    channel = await here.channel()
    message = await here.say(channel, "Привіт")
    await killed(here, tmp_path, channel, message, scene.hangs)
    whole, failures = PostgresRuns.lease, iter([ZeroDivisionError()] * 2)

    async def failing(*arguments):
        if (failure := next(failures, None)) is not None:
            raise failure
        return await whole(*arguments)

    monkeypatch.setattr(PostgresRuns, "lease", failing)
    async with here.agents() as runtime:
        assert (await here.invoke(channel, message))["reply"] == "Я тут."
        assert [event["error"] for event in here.events.named("agents.claim_failed")] == [
            "ZeroDivisionError"
        ] * 2
        await until(lambda: health_is(here, 200))
        (upkeep,) = (task for task in runtime.runs._loops if task.get_name() == "agents:resume")
        upkeep.cancel()
        await until(lambda: health_is(here, 503))
        checks = (await here.http.get("/internal/agent-runtime/health")).json()["checks"]
        assert "resume" in checks["work"]["reason"]


async def health_is(here, status):
    return (await here.http.get("/internal/agent-runtime/health")).status_code == status


async def test_an_attempt_counts_before_its_context_is_read(here, tmp_path):
    """Before its ingredients are written down already: what kills each replica at once must not go
    on for ever.
    """
    begun, may_read = asyncio.Event(), asyncio.Event()
    workspace = here.door.apps["workspace"]

    async def holding(scope, receive, send):
        if scope["method"] == "GET" and scope["path"].endswith("/messages"):
            begun.set()
            await may_read.wait()
        await workspace(scope, receive, send)

    channel = await here.channel()
    message = await here.say(channel, "Привіт")
    here.door.apps["workspace"] = holding
    await killed(here, tmp_path, channel, message, begun)
    begun.clear()
    async with here.agents():
        async with asyncio.timeout(60):
            await begun.wait()
        (run,) = (
            await here.http.get("/internal/agent-runtime/runs", params={"microdao_id": OWN})
        ).json()["items"]
        assert (run["attempt"], run["status"]) == (1, "running")
        assert "started_at" in run
        may_read.set()
        assert (await here.invoke(channel, message))["status"] == "answered"
