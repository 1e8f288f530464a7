"""Traces of the real graph, through HAProxy and Serve's replicas, at a real collector."""

import secrets

import pytest

from tests.graph.test_agents_graph import DEMO, PATIENCE_S, PERSON, make_channel
from tests.support.graph.llm_calls import body, until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(300, func_only=True)]

TENANT = {"agent_id": "agent:traced", "microdao_id": "microdao:traced"}
STEPS = {"workspace.invoke", f"invoke_agent {DEMO}", "agent.context", "agent.llm", "agent.reply"}


class Caller:
    """Traces by itself, and so begins the trace."""

    def __init__(self):
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-01"}

    async def spans(self, graph, last):
        """Returns the spans of its trace, once the one named `last` has arrived."""

        async def arrived():
            found = [span for span in graph.collector.spans if span.trace_id == self.trace_id]
            return found if last in {span.name for span in found} else None

        return await until(arrived)


async def test_a_call_of_the_engine_is_one_trace_that_the_ledger_names(graph, client):
    caller = Caller()
    asked = body("dagi-local-8b", max_tokens=4, messages=[{"role": "user", "content": "таємне"}])
    answer = await client.post("/internal/llm/proxy", json=asked, headers=caller.headers)
    assert answer.status_code == 200
    spans = {span.name: span for span in await caller.spans(graph, "POST /internal/llm/proxy")}
    request, call = spans["POST /internal/llm/proxy"], spans["chat dagi-local-8b"]
    (attempt,) = [span for name, span in spans.items() if name.startswith("attempt local/")]
    assert len(spans) == 3
    assert request.parent == caller.span_id
    assert (call.parent, attempt.parent) == (request.span_id, call.span_id)
    assert {span.resource["service.name"] for span in spans.values()} == {"daarion-llm"}
    assert "таємне".encode() not in b"".join(sent for _, _, sent in graph.collector.requests)

    async def summed():
        page = await client.get("/internal/llm/usage", params={"trace_id": caller.trace_id})
        return page.json()["rows"][0]["calls"] == 1

    assert await until(summed)
    assert caller.trace_id in {event.get("trace_id") for event in graph.events("llm")}


async def test_a_query_shows_its_arms(graph, client):
    caller = Caller()
    query = {**TENANT, "query": "Де лежить ключ?"}
    answer = await client.post("/internal/agent-memory/query", json=query, headers=caller.headers)
    assert answer.status_code == 200
    found = await caller.spans(graph, "POST /internal/agent-memory/query")
    assert {"memory.query", "memory.embed", "memory.dense", "memory.lexical"} <= {
        span.name for span in found
    }
    assert {span.resource["service.name"] for span in found} == {"daarion-memory"}


async def test_nobody_else_makes_spans(graph, client):
    assert (await client.get("/internal/llm/models")).status_code == 200
    scopes = {span.scope for span in graph.collector.spans}
    assert scopes
    assert {scope.partition(".")[0] for scope in scopes} == {"daarion"}
    callers = {span.trace_id for span in graph.collector.spans if span.kind == "SERVER"}
    assert {span.trace_id for span in graph.collector.spans} == callers


async def test_a_channels_message_its_run_and_the_calls_of_the_run_are_one_trace(graph, client):
    caller = Caller()
    channel = await make_channel(client, "microdao:traced", DEMO)
    asked = {"sender_id": PERSON, "text": "Hello!", "message_id": "ask-traced"}
    path = f"/internal/messaging/channels/{channel}/messages"
    answer = await client.post(path, json=asked, headers=caller.headers)
    assert answer.status_code == 201

    async def whole():
        spans = [span for span in graph.collector.spans if span.trace_id == caller.trace_id]
        services = {span.resource["service.name"] for span in spans}
        is_whole = {"daarion-workspace", "daarion-agents", "daarion-llm"} <= services
        return spans if is_whole and {span.name for span in spans} >= STEPS else None

    spans = await until(whole, timeout_s=PATIENCE_S)
    (attempt,) = (span for span in spans if span.name == f"invoke_agent {DEMO}")
    run = await client.get(
        f"/internal/agent-runtime/runs/{attempt.attributes['daarion.run_id']}",
        params={"microdao_id": "microdao:traced"},
    )
    assert run.json()["trace_id"] == caller.trace_id
