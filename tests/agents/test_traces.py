"""A run is one trace at a real collector: from the channel's message to the stored reply."""

import json

import pytest

from tests.support.agents.child import process, until
from tests.support.agents.platform import SOFIA, blueprint, extra_tool, platform
from tests.support.agents.scripted_model import Thought
from tests.support.otlp import tracing_to

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SECRET = "Таємниця"


@pytest.fixture
async def here(database_url, tmp_path):
    tools = (extra_tool("notes.read", "read"),)
    async with platform(database_url, tmp_path, tools=tools, agents=False) as here:
        here.use(blueprint(tools=["notes.read"]))
        yield here


async def invoked(here, channel, message, url=None, **params):
    body = {
        "agent_id": SOFIA,
        "entrypoint": "channel_message",
        "payload": {"channel_id": channel, "message_id": message},
    }
    address = f"{url}/invocations" if url else "/internal/agent-runtime/invocations"
    answer = await here.http.post(address, json=body, headers=TRACED, params=params)
    assert answer.status_code in {200, 202}, answer.text
    return answer.json()


async def test_a_run_is_one_trace_that_its_record_names(collector, monkeypatch, here):
    here.model.script(Thought(calls=[("notes__read", {"text": SECRET})]), Thought(f"{SECRET}!"))
    channel = await here.channel()
    message = await here.say(channel, f"{SECRET}?")
    async with here.agents():
        with tracing_to(collector, monkeypatch):
            answer = await invoked(here, channel, message)
        record = await here.run(answer["run_id"])
    assert (answer["status"], record["trace_id"]) == ("answered", TRACE)
    attempt = collector.one(f"invoke_agent {SOFIA}")
    (request,) = (span for span in collector.spans if span.span_id == attempt.parent)
    assert (request.kind, request.parent) == ("SERVER", CALLER)
    assert attempt.attributes == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.id": SOFIA,
        "gen_ai.conversation.id": channel,
        "daarion.microdao_id": here.microdao,
        "daarion.run_id": answer["run_id"],
        "daarion.attempt": 1,
        "daarion.outcome": "answered",
    }
    steps = [span.name for span in collector.children(attempt) if span.name.startswith("agent.")]
    assert steps.count("agent.llm") == 2
    assert {"agent.context", "agent.tool_list", "agent.tools", "agent.reply"} <= set(steps)
    (asked, _) = collector.named("agent.llm")
    (proxy,) = collector.children(asked)
    assert (proxy.kind, [span.name for span in collector.children(proxy)]) == (
        "SERVER",
        ["chat thinker"],
    )
    sent = b"".join(body for _, _, body in collector.requests)
    assert SECRET.encode() not in sent
    assert json.dumps(SECRET).encode() not in sent


async def test_a_message_in_a_channel_begins_the_trace_of_its_run(
    collector, monkeypatch, database_url, tmp_path
):
    async with platform(database_url, tmp_path, agents=False, dispatch=True) as here:
        here.model.script(Thought("Так."))
        channel = await here.channel()
        with tracing_to(collector, monkeypatch):
            async with here.agents():  # its end waits for the run's
                await here.post(
                    f"/internal/messaging/channels/{channel}/messages",
                    {"sender_id": "user:olena", "text": "Так?"},
                    201,
                    headers=TRACED,
                )
                await until(lambda: here.replies(channel))
    dispatched, attempt = collector.one("workspace.invoke"), collector.one(f"invoke_agent {SOFIA}")
    (posted,) = (span for span in collector.spans if span.span_id == dispatched.parent)
    assert (posted.kind, posted.trace_id, attempt.trace_id) == ("SERVER", TRACE, TRACE)


async def test_a_run_that_is_taken_over_stays_in_its_trace(collector, monkeypatch, here, tmp_path):
    here.model.script(Thought("ніколи", delay_s=60))
    channel = await here.channel()
    message = await here.say(channel, "Так?")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    async with process(here, tmp_path) as (child, url):
        run = await invoked(here, channel, message, url, wait="false")

        async def asked():
            return here.model.bodies

        await until(asked)
        child.kill()
        await child.wait()
    here.model.script(Thought("Так."))
    with tracing_to(collector, monkeypatch):
        async with here.agents():
            await until(lambda: here.replies(channel))
            record = await here.run(run["run_id"])
    resumed = collector.one(f"invoke_agent {SOFIA}")
    assert (resumed.trace_id, resumed.attributes["daarion.attempt"]) == (TRACE, 2)
    assert record["trace_id"] == TRACE


async def test_a_step_that_fails_is_seen(collector, monkeypatch, here):
    here.model.script(Thought(status=400))
    channel = await here.channel()
    message = await here.say(channel, "Так?")
    async with here.agents():
        with tracing_to(collector, monkeypatch):
            assert (await invoked(here, channel, message))["status"] == "failed"
    assert collector.one("agent.llm").error
    assert collector.one(f"invoke_agent {SOFIA}").error == collector.one("agent.llm").error
