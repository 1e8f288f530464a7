"""The LLM proxy over HTTP: what callers see when providers fail, fall back or stay silent."""

import asyncio

import pytest

from tests.support.llm.proxy import client_of, impatient, proxy_over
from tests.support.llm.proxy_http import BODY, assert_envelope, events_of, running
from tests.support.llm.upstream import play


@pytest.mark.parametrize(
    ("plays", "status", "kind", "retryable"),
    [
        ("http_401", 502, "upstream_auth_failed", False),
        ("http_403", 502, "upstream_auth_failed", False),
        ("http_404", 502, "upstream_misconfigured", False),
        ("http_429", 503, "upstream_rate_limited", True),
        ("http_500", 502, "upstream_unavailable", True),
        ("http_503", 502, "upstream_unavailable", True),
        ("context_length", 400, "context_length_exceeded", False),
        ("content_filter", 400, "content_filtered", False),
        ("silence", 504, "upstream_timeout", True),
        ("html", 502, "upstream_invalid_response", True),
        ("truncated_json", 502, "upstream_invalid_response", True),
        ("wrong_shape?kind=no_choices", 502, "upstream_invalid_response", True),
        ("reset_before_headers", 502, "upstream_unavailable", True),
    ],
)
@pytest.mark.parametrize("path", ["/proxy", "/stream"])
async def test_upstream_failures_have_a_stable_type_and_leak_nothing(
    plays, status, kind, retryable, path
):
    async with running(plays, **impatient(plays)) as (client, _, recorder):
        assert_envelope(await client.post(path, json=BODY), status, kind, retryable=retryable)
        assert recorder.events[-1]["outcome"] == kind
        assert recorder.records[-1].outcome == kind


async def test_retry_after_is_passed_on():
    async with running(play("http_429", retry_after=70)) as (
        client,
        _,
        _,
    ):  # too long to be waited for
        assert (await client.post("/proxy", json=BODY)).headers["Retry-After"] == "70"


async def test_a_dead_provider_is_a_502():
    async with (
        proxy_over("http://127.0.0.1:9/v1") as (proxy, recorder),
        client_of(proxy, recorder) as client,
    ):
        assert_envelope(
            await client.post("/proxy", json=BODY), 502, "upstream_unavailable", retryable=True
        )


async def test_an_unknown_model_names_the_known_ones():
    async with running() as (client, _, _):
        error = assert_envelope(
            await client.post("/proxy", json={**BODY, "model": "nope"}),
            404,
            "model_not_found",
            retryable=False,
        )
        assert all(name in error["message"] for name in ("plain", "guarded", "here"))


async def test_a_missing_key_makes_only_that_providers_models_unavailable():
    async with running() as (client, _, _):
        error = assert_envelope(
            await client.post("/proxy", json={**BODY, "model": "nokey"}),
            503,
            "model_unavailable",
            retryable=False,
        )
        assert "MISSING_API_KEY" in error["message"]
        rows = {row["id"]: row for row in (await client.get("/models")).json()["models"]}
        assert (rows["nokey"]["available"], rows["nokey"]["reason"]) == (
            False,
            "MISSING_API_KEY is not set",
        )
        assert rows["plain"] == {
            "id": "plain",
            "provider": "openai",
            "name": "gpt-4.1-mini",
            "available": True,
            "fallbacks": [],
            "circuit": {"state": "closed", "in_flight": 0},
        }
        assert (rows["here"]["available"], rows["here"]["reason"]) == (
            False,
            "the local engine is still starting: retry",
        )
        assert (await client.post("/proxy", json=BODY)).status_code == 200


async def test_an_absent_engine_is_a_retryable_503():
    async with running() as (client, _, _):
        assert_envelope(
            await client.post("/proxy", json={**BODY, "model": "here"}),
            503,
            "engine_unavailable",
            retryable=True,
        )


@pytest.mark.parametrize(
    "failure", ["http_500", "http_401", "http_429", "reset_before_headers", "silence", "html"]
)
@pytest.mark.parametrize("path", ["/proxy", "/stream"])
async def test_a_fallback_answers_and_is_named(failure, path):
    async with running(**impatient(failure)) as (client, upstream, recorder):
        upstream.script(failure, model="first")
        response = await client.post(path, json={**BODY, "model": "guarded"})
        assert response.status_code == 200
        last = events_of(response.text)[-1][1] if path == "/stream" else response.json()
        assert (last["provider"], last["model_resolved"]) == ("backup", "second")
        record = recorder.records[-1]
        tries = 1 if failure in {"http_401", "silence"} else 2  # neither heals by asking again
        assert (record.provider, record.physical_model, record.attempts) == (
            "backup",
            "second",
            tries + 1,
        )
        assert [attempt["model"] for attempt in last["attempts"]] == ["first"] * tries + ["second"]


async def test_a_keyless_primary_is_skipped_and_listed():
    async with running() as (client, _, _):
        answer = (await client.post("/proxy", json={**BODY, "model": "nokey-guarded"})).json()
        assert [(attempt["model"], attempt["outcome"]) for attempt in answer["attempts"]] == [
            ("x", "model_unavailable"),
            ("second", "ok"),
        ]


@pytest.mark.parametrize("refusal", ["context_length", "content_filter", "http_400"])
async def test_a_fault_of_the_caller_is_not_retried_at_another_target(refusal):
    async with running() as (client, upstream, _):
        upstream.script(refusal, model="first")
        assert (await client.post("/proxy", json={**BODY, "model": "guarded"})).status_code == 400
        assert upstream.total == 1


async def test_the_callers_deadline_holds():
    async with running("silence") as (client, _, _):
        started = asyncio.get_running_loop().time()
        assert_envelope(
            await client.post("/proxy", json={**BODY, "timeout_s": 0.2}),
            504,
            "upstream_timeout",
            retryable=True,
        )
        assert asyncio.get_running_loop().time() - started < 8  # the provider's own bound is 10 s


async def test_a_stream_ends_with_usage_and_the_answering_target():
    async with running() as (client, _, recorder):
        response = await client.post("/stream", json=BODY)
        assert response.headers["content-type"].startswith("text/event-stream")
        *deltas, last = events_of(response.text)
        assert "".join(data["delta"] for _, data in deltas) == "Echo: Яка столиця України?"
        assert len(deltas) > 1
        assert set(last[1]) == {"usage", "provider", "model_resolved", "finish_reason", "attempts"}
        assert recorder.records[-1].streamed
        assert recorder.records[-1].ttft_ms > 0


@pytest.mark.parametrize(
    "broken",
    [
        "cut?after=2",
        "stall?after=2",
        "malformed_chunk?after=2&last=true",
        "error_in_stream?after=2",
        "reset_mid_body?after=2",
    ],
)
async def test_a_stream_that_breaks_half_way_ends_in_an_error_event(broken):
    async with running(broken, **impatient(broken)) as (client, _, recorder):
        response = await client.post("/stream", json=BODY)
        assert response.status_code == 200
        names = [name for name, _ in events_of(response.text)]
        assert names == ["message"] * (len(names) - 1) + ["error"]
        error = events_of(response.text)[-1][1]["error"]
        assert error["type"] in {
            "upstream_invalid_response",
            "upstream_timeout",
            "upstream_unavailable",
        }
        assert "usage" not in response.text
        assert recorder.records[-1].outcome == error["type"]
        assert recorder.records[-1].completion_tokens > 0
        assert recorder.records[-1].estimated


async def test_a_broken_stream_is_resumed_if_the_route_says_so():
    resumed = {
        "provider": "openai",
        "name": "first",
        "fallbacks": ["spare"],
        "stream_recovery": "resume",
    }
    async with running(resumed=resumed) as (client, upstream, _):
        upstream.script("cut?after=2", model="first")
        upstream.script(play("ok", text=" столиця України?"), model="second")
        *deltas, (name, last) = events_of(
            (await client.post("/stream", json={**BODY, "model": "resumed"})).text
        )
        assert "".join(data["delta"] for _, data in deltas) == "Echo: Яка столиця України?"
        assert (name, last["provider"], last["model_resolved"], last["finish_reason"]) == (
            "message",
            "backup",
            "second",
            "stop",
        )
        assert last["written_by"] == ["openai/first", "backup/second"]
        assert [attempt["outcome"] for attempt in last["attempts"]] == [
            "upstream_invalid_response",
            "ok",
        ]


async def test_a_failing_provider_is_not_called_and_the_error_says_for_how_long():
    async with running("http_500") as (client, upstream, _):
        answers = [await client.post("/proxy", json=BODY) for _ in range(6)]
        assert [answer.status_code for answer in answers[:2]] == [502, 502]
        assert upstream.total == 5, "the default circuit opens after five failures"
        assert_envelope(answers[-1], 503, "circuit_open", retryable=True)
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 5
        row = next(
            row for row in (await client.get("/models")).json()["models"] if row["id"] == "plain"
        )
        assert (row["available"], row["circuit"]["state"]) == (False, "open")
