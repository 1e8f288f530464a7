"""One trace from the request through the call to its attempts, at a real collector."""

import asyncio
import json

import pytest

from backends.http.client import presenting
from backends.http.llm import LLMProxyClient
from contracts.deadline import Deadline
from contracts.errors import EngineUnavailable
from contracts.identity import Tenant
from contracts.llm.ports import ModelRequest
from tests.llm.test_embeddings_http import BODY as EMBEDDINGS
from tests.llm.test_embeddings_http import Asked, application
from tests.support.llm.failover import asking, call_result, failing_proxy
from tests.support.llm.proxy import ingress_of, proxy_over
from tests.support.llm.proxy_http import BODY, CALLER, running
from tests.support.llm.upstream import ScriptedUpstream, play
from tests.support.otlp import tracing_to
from tests.support.uvicorn_server import served

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
SECRETS = ["столиця", "Echo", "sk-secret"]


def assert_no_contents(collector):
    sent = b"".join(body for _, _, body in collector.requests)
    assert [secret for secret in SECRETS if secret.encode() in sent] == []


async def test_a_call_is_one_trace_and_its_record_names_it(collector, monkeypatch):
    with tracing_to(collector, monkeypatch, "llm"):
        async with running() as (client, upstream, recorder):
            body = {**BODY, "metadata": {**CALLER, "channel_id": "channel:3"}}
            headers = {**TRACED, "X-Request-Id": "request-1"}
            answer = await client.post("/proxy", json=body, headers=headers)
            assert answer.status_code == 200
    request = collector.one("POST /proxy")
    (call,) = collector.children(request)
    (attempt,) = collector.children(call)
    assert collector.children(attempt) == []
    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert (request.kind, request.parent) == ("SERVER", "00f067aa0ba902b7")
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/proxy",
        "http.response.status_code": 200,
        "daarion.request_id": "request-1",
    }
    usage = answer.json()["usage"]
    assert (call.name, call.kind) == ("chat plain", "CLIENT")
    assert call.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "plain",
        "gen_ai.agent.id": "agent:sofia",
        "gen_ai.conversation.id": "channel:3",
        "daarion.microdao_id": "microdao:7",
        "gen_ai.provider.name": "openai",
        "gen_ai.response.model": "gpt-4.1-mini",
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.response.finish_reasons": ["stop"],
    }
    assert (attempt.name, attempt.kind) == ("attempt openai/gpt-4.1-mini", "CLIENT")
    assert attempt.attributes == {
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4.1-mini",
    }
    assert not any(span.failed for span in collector.spans)
    assert [record.trace_id for record in recorder.records] == [TRACE]
    (event,) = [event for event in recorder.events if event["event"] == "llm.call"]
    assert event["trace_id"] == TRACE
    assert_no_contents(collector)
    (asked,) = upstream.requests
    assert not {"traceparent", "tracestate"} & {name.lower() for name in asked.headers}


@pytest.mark.parametrize("path", ["/proxy", "/stream"])
async def test_contents_are_shown_where_the_operator_wants_them_and_are_cut(
    collector, monkeypatch, path
):
    wanted = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    messages = [{"role": "system", "content": "старе"}]
    messages += [{"role": "user", "content": f"{number} {'ї' * 2_000}"} for number in range(7)]
    image = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 9_000}"}}]
    messages.append({"role": "user", "content": image})
    with tracing_to(collector, monkeypatch, **wanted):
        async with running(play("ok", text="слово " * 5_000)) as (client, _, _):
            answer = await client.post(path, json={**BODY, "messages": messages})
            assert answer.status_code == 200
    attributes = collector.one("chat plain").attributes
    given = json.loads(attributes["gen_ai.input.messages"])
    assert len(given) == 8
    assert given[0] == {
        "role": "user",
        "parts": [{"type": "text", "content": f"0 {'ї' * 1_022}"}],
    }
    assert len(given[-1]["parts"][0]["content"]) == 1_024
    (said,) = json.loads(attributes["gen_ai.output.messages"])
    assert (said["role"], len(said["parts"][0]["content"])) == ("assistant", 8_192)
    assert said["parts"][0]["content"].startswith("слово слово")
    assert "старе".encode() not in b"".join(body for _, _, body in collector.requests)


async def test_a_stream_ends_its_spans_with_its_last_part(collector, monkeypatch):
    with tracing_to(collector, monkeypatch):
        async with running("ok?delay_s=0.05") as (client, _, _):
            answer = await client.post("/stream", json=BODY, headers=TRACED)
            assert answer.status_code == 200
    request, call = collector.one("POST /stream"), collector.one("chat plain")
    attempt = collector.one("attempt openai/gpt-4.1-mini")
    assert request.end >= call.end >= attempt.end > attempt.start + 50_000_000
    assert call.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert call.attributes["gen_ai.usage.output_tokens"] > 0
    assert (call.parent, attempt.parent) == (request.span_id, call.span_id)
    assert_no_contents(collector)


@pytest.mark.parametrize("stream", [False, True])
async def test_retry_and_failover_are_attempts_of_one_call(collector, monkeypatch, stream):
    with tracing_to(collector, monkeypatch):
        async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
            upstream.script("http_503", model="first")
            result = await call_result(proxy, asking("calm-guarded"), stream=stream)
            assert result.answered_by == "second"
    call = collector.one("chat calm-guarded")
    attempts = collector.children(call)
    assert [(span.name, span.error) for span in attempts] == [
        ("attempt calm/first", "upstream_unavailable"),
        ("attempt calm/first", "upstream_unavailable"),
        ("attempt backup/second", None),
    ]
    assert [span.failed for span in attempts] == [True, True, False]
    assert (call.failed, call.attributes["gen_ai.provider.name"]) == (False, "backup")


async def test_a_resumed_stream_shows_who_wrote_it(collector, monkeypatch):
    with tracing_to(collector, monkeypatch):
        async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
            upstream.script(play("cut", after=2), model="first")
            upstream.script(play("ok", text=" три"), model="second")
            await call_result(proxy, asking("calm-resumed"), stream=True)
    attempts = collector.children(collector.one("chat calm-resumed"))
    assert [(span.name, span.error) for span in attempts] == [
        ("attempt calm/first", "upstream_invalid_response"),
        ("attempt backup/second", None),
    ]


async def test_targets_that_were_not_called_are_noted(collector, monkeypatch):
    with tracing_to(collector, monkeypatch):
        async with running() as (client, _, _):
            answer = await client.post("/proxy", json={**BODY, "model": "nokey-guarded"})
            assert answer.status_code == 200
    call = collector.one("chat nokey-guarded")
    assert call.events == ("skipped",)
    assert [span.name for span in collector.children(call)] == ["attempt backup/second"]


@pytest.mark.parametrize(
    ("plays", "model", "status", "kind"),
    [
        ("http_500", "plain", 502, "upstream_unavailable"),
        ("ok", "nokey", 503, "model_unavailable"),
    ],
)
async def test_a_failed_call_fails_its_spans_by_type(
    collector, monkeypatch, plays, model, status, kind
):
    with tracing_to(collector, monkeypatch):
        async with running(plays) as (client, _, _):
            answer = await client.post("/proxy", json={**BODY, "model": model})
            assert answer.status_code == status
    request, call = collector.one("POST /proxy"), collector.one(f"chat {model}")
    assert (call.failed, call.error) == (request.failed, request.error) == (True, kind)
    assert request.attributes["http.response.status_code"] == status
    assert {span.message for span in collector.spans} == {""}
    assert_no_contents(collector)


async def test_a_callers_mistake_is_named_and_fails_no_span(collector, monkeypatch):
    with tracing_to(collector, monkeypatch):
        async with running() as (client, _, _):
            await client.post("/proxy", json={**BODY, "model": "unknown"})
            await client.get("/no/such/кімната")
            await client.request("BREW", "/proxy")
    unknown, nowhere, brewed = collector.spans
    assert (unknown.name, unknown.error, unknown.failed) == (
        "POST /proxy",
        "model_not_found",
        False,
    )
    assert (nowhere.name, nowhere.error, nowhere.failed) == ("GET", "not_found", False)
    assert nowhere.attributes["http.response.status_code"] == 404
    assert "http.route" not in nowhere.attributes
    assert brewed.name == "HTTP /proxy"
    assert brewed.attributes["http.request.method"] == "_OTHER"
    assert (brewed.error, brewed.attributes["http.response.status_code"]) == (
        "method_not_allowed",
        405,
    )
    assert "кімната".encode() not in b"".join(body for _, _, body in collector.requests)


async def test_a_caller_who_leaves_cancels_the_spans(collector, monkeypatch):
    with tracing_to(collector, monkeypatch):
        async with running("silence") as (client, upstream, _):
            asked = asyncio.create_task(client.post("/proxy", json={**BODY, "model": "guarded"}))
            await upstream.wait_for(requests=1)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
    assert collector.one("attempt openai/first").error == "cancelled"
    assert collector.one("chat guarded").error == "cancelled"
    assert collector.one("POST /proxy").error == "CancelledError"


async def test_a_client_of_ours_carries_its_trace_to_another_application(collector, monkeypatch):
    question = ModelRequest("plain", [{"role": "user", "content": "?"}], max_tokens=8)
    with tracing_to(collector, monkeypatch) as tracing:
        async with (
            ScriptedUpstream() as upstream,
            proxy_over(upstream.base_url) as (proxy, recorder),
            served(ingress_of(proxy, recorder), root_path="/internal/llm") as url,
        ):
            client = LLMProxyClient(url.removesuffix("/internal/llm"), presenting(None))
            with tracing.span("step"):
                tenant = Tenant(**CALLER)
                await client.chat(question, tenant, None, Deadline.after(10))
            await client.close()
    request = collector.one("POST /internal/llm/proxy")
    assert request.parent == collector.one("step").span_id
    assert request.attributes["http.route"] == "/internal/llm/proxy"


async def test_a_probe_makes_no_span(collector, monkeypatch):
    with tracing_to(collector, monkeypatch):
        async with running() as (client, _, _):
            for path in ("/health", "/health/live"):
                await client.get(path, headers=TRACED)
    assert collector.requests == []


async def test_without_sampling_records_have_ids_and_nothing_is_sent(collector, monkeypatch):
    none = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    with tracing_to(collector, monkeypatch, **none):
        async with running() as (client, _, recorder):
            await client.post("/proxy", json=BODY)
            await client.post(
                "/stream", json=BODY, headers={"traceparent": f"00-{TRACE}-{1:016x}-00"}
            )
    first, second = (record.trace_id for record in recorder.records)
    assert len(first) == 32
    assert second == TRACE
    assert collector.requests == []


async def test_without_tracing_records_have_no_id(collector):
    async with running() as (client, _, recorder):
        await client.post("/proxy", json=BODY, headers=TRACED)
    assert [record.trace_id for record in recorder.records] == [None]


async def test_embeddings_are_a_call(collector, monkeypatch):
    with tracing_to(collector, monkeypatch):
        async with application() as (client, _, recorder):
            answer = await client.post("/v1/embeddings", json=EMBEDDINGS, headers=TRACED)
            assert answer.status_code == 200
    call = collector.one("embeddings multilingual-e5-small")
    assert call.parent == collector.one("POST /v1/embeddings").span_id
    assert call.attributes["gen_ai.operation.name"] == "embeddings"
    assert call.attributes["gen_ai.usage.input_tokens"] == 5
    assert recorder.records[-1].trace_id == TRACE


async def test_failed_embeddings_fail_their_span(collector, monkeypatch):
    embedder = Asked()
    embedder.away = EngineUnavailable("away")
    with tracing_to(collector, monkeypatch):
        async with application(embedder=embedder) as (client, _, _):
            await client.post("/v1/embeddings", json=EMBEDDINGS)
    assert collector.one("embeddings multilingual-e5-small").error == "engine_unavailable"
