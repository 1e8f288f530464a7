"""A tool call is one span with its executor's below it, at a real collector."""

from contracts.tools.api import Outcome
from tests.support.otlp import tracing_to
from tests.support.tools.routes import body

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


async def test_a_call_names_tool_rule_and_executor(collector, monkeypatch, served):
    here, http = served
    with tracing_to(collector, monkeypatch):
        asked = body(args={"text": "таємниця"}, call_id="call-1")
        answer = await http.post("/call", json=asked, headers=TRACED)
    assert answer.json()["ok"] is True
    call = collector.one("execute_tool test.echo")
    (request,) = (span for span in collector.spans if span.span_id == call.parent)
    assert (request.kind, request.trace_id) == ("SERVER", TRACE)
    rule = call.attributes.pop("daarion.tool.rule")
    assert rule
    assert call.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "test.echo",
        "gen_ai.tool.call.id": "call-1",
        "gen_ai.agent.id": asked["agent_id"],
        "daarion.microdao_id": asked["microdao_id"],
        "daarion.tool.allowed": True,
    }
    (ran,) = collector.children(call)
    assert (ran.name.partition(".")[0], ran.kind, ran.failed) == ("tools", "CLIENT", False)
    assert "таємниця".encode() not in b"".join(sent for _, _, sent in collector.requests)
    page = await http.get("/calls", params={"microdao_id": asked["microdao_id"]})
    assert [call["trace_id"] for call in page.json()["calls"]] == [TRACE]
    assert [event.trace_id for event in here.usage.published] == [TRACE]


async def test_a_refusal_and_an_unknown_tool_are_seen(collector, monkeypatch, served):
    _, http = served
    with tracing_to(collector, monkeypatch):
        await http.post("/call", json=body("test.private"))
        await http.post("/call", json=body("test.nothing"))
    denied, unknown = collector.one("execute_tool test.private"), collector.one("execute_tool")
    assert (denied.error, denied.attributes["daarion.tool.allowed"]) == ("denied", False)
    assert (unknown.error, "gen_ai.tool.name" in unknown.attributes) == ("not_found", False)
    assert collector.children(denied) == []


async def test_a_failure_of_the_executor_is_seen_in_both(collector, monkeypatch, served):
    here, http = served
    failure = Outcome(False, error_kind="upstream", error="таємниця")
    here.executor.script = lambda _execution: failure
    with tracing_to(collector, monkeypatch):
        await http.post("/call", json=body())
    call = collector.one("execute_tool test.echo")
    assert [span.error for span in (call, *collector.children(call))] == ["upstream", "upstream"]
    assert "таємниця".encode() not in b"".join(sent for _, _, sent in collector.requests)
