"""Errors below `/v1`: in OpenAI's shape, as the official client's exceptions."""

import asyncio

import httpx
import openai
import pytest

from tests.support.llm.openai_surface import BODY, client_of, running
from tests.support.llm.proxy import client_of as client_of_application
from tests.support.llm.proxy import impatient, proxy_over
from tests.support.llm.proxy_http import events_of
from tests.support.llm.upstream import ScriptedUpstream, play


@pytest.mark.parametrize(
    ("change", "reason", "param"),
    [
        ({"n": 2}, "n = 1", "n"),
        ({"n": 0}, "n = 1", "n"),
        ({"logprobs": True}, "log probabilities", None),
        ({"functions": [{"name": "f"}]}, "tools", None),
        ({"stream_options": {"include_usage": True}}, "stream", None),
        ({"messages": []}, "messages", "messages"),
        (
            {"messages": [{"role": "wizard", "content": "x"}]},
            "messages[0].role",
            "messages[0].role",
        ),
        ({"temperature": 9}, "temperature", "temperature"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "max_completion_tokens"),
        ({"metadata": {"agent_id": "a\u0000"}}, "metadata.agent_id", "metadata.agent_id"),
        ({"tool_choice": "required"}, "tools", None),
        ({"model": "nope"}, "nope", None),
        ({f"unknown_{number}": 1 for number in range(70)}, "64 fields", None),
        ({"unknown": "x" * 300_000}, "256 KiB", None),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_requests_are_reported_in_openais_shape(change, reason, param):
    async with running(secret=None) as (url, upstream, _), httpx.AsyncClient() as client:
        response = await client.post(f"{url}/v1/chat/completions", json={**BODY, **change})
        error = response.json()["error"]
        assert response.status_code == (404 if "model" in change else 400)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert reason in error["message"]
        assert response.headers["x-should-retry"] == "false"
        assert upstream.total == 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind", "code"),
    [
        (
            "POST",
            "/v1/chat/completions",
            {"Authorization": "Bearer wrong"},
            401,
            "authentication_error",
            "unauthorized",
        ),
        ("GET", "/v1/models", {}, 401, "authentication_error", "unauthorized"),
        ("GET", "/v1", {"X-Internal-Secret": "s3cret"}, 404, "invalid_request_error", "not_found"),
        (
            "POST",
            "/v1/completions",
            {"X-Internal-Secret": "s3cret"},
            404,
            "invalid_request_error",
            "not_found",
        ),
        (
            "GET",
            "/v1/chat/completions",
            {"X-Internal-Secret": "s3cret"},
            405,
            "invalid_request_error",
            "method_not_allowed",
        ),
        (
            "DELETE",
            "/v1/models/plain",
            {"X-Internal-Secret": "s3cret"},
            405,
            "invalid_request_error",
            "method_not_allowed",
        ),
        (
            "GET",
            "/v1/" + "x" * 9_000,
            {"X-Internal-Secret": "s3cret"},
            404,
            "invalid_request_error",
            "not_found",
        ),
    ],
)
async def test_every_refusal_below_v1_has_openais_shape(method, path, headers, status, kind, code):
    async with running() as (url, _, _), httpx.AsyncClient() as client:
        response = await client.request(method, f"{url}{path}", headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"]) == (status, kind, code)
        assert error["message"]
        assert error["request_id"]


async def test_other_routes_keep_the_envelope():
    async with running() as (url, _, _), httpx.AsyncClient() as client:
        assert set((await client.get(f"{url}/v1x")).json()["error"]) == {
            "type",
            "message",
            "retryable",
            "request_id",
        }


async def test_a_body_over_the_bound_is_refused_in_openais_shape():
    async with running(secret=None) as (url, _, _), httpx.AsyncClient() as client:
        response = await client.post(f"{url}/v1/chat/completions", content=b"x" * (9 << 20))
        assert (response.status_code, response.json()["error"]["code"]) == (
            413,
            "payload_too_large",
        )


async def test_a_full_replica_and_a_limit_refuse_in_openais_shape():
    async with running("silence", max_concurrent=1) as (url, upstream, _), client_of(url) as client:
        held = asyncio.create_task(client.chat.completions.create(**BODY))
        await upstream.wait_for(requests=1)
        with pytest.raises(openai.InternalServerError) as refused:
            await client.models.list()
        assert (refused.value.status_code, refused.value.code) == (503, "overloaded")
        assert refused.value.response.headers["x-should-retry"] == "true"
        held.cancel()
        await asyncio.wait([held])
    async with running(limit=1) as (url, _, _), client_of(url) as client:
        await client.chat.completions.create(**BODY)
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(**BODY)
        assert limited.value.code == "rate_limited"
        assert int(limited.value.response.headers["Retry-After"]) >= 1
        assert limited.value.response.headers["x-should-retry"] == "true"
    async with running(limit=0) as (url, upstream, _), client_of(url) as client:
        with pytest.raises(openai.RateLimitError) as never:
            await client.chat.completions.create(**BODY)
        assert (never.value.code, never.value.response.headers["x-should-retry"]) == (
            "over_limit",
            "false",
        )
        assert upstream.total == 0


@pytest.mark.parametrize(
    ("behaviour", "error", "code"),
    [
        ("context_length", openai.BadRequestError, "context_length_exceeded"),
        ("content_filter", openai.BadRequestError, "content_filtered"),
        ("http_500", openai.InternalServerError, "upstream_unavailable"),
        ("silence", openai.InternalServerError, "upstream_timeout"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_upstream_failures_are_the_clients_exceptions(behaviour, error, code, stream):
    async with running(behaviour, **impatient(behaviour)) as (url, _, _), client_of(url) as client:
        with pytest.raises(error) as failed:
            await client.chat.completions.create(**BODY, stream=stream)
        assert failed.value.code == code


@pytest.mark.parametrize(
    "broken", ["cut?after=2", "malformed_chunk?after=2&last=true", "error_in_stream?after=2"]
)
async def test_a_stream_that_breaks_half_way_raises_in_the_client(broken):
    async with running(broken) as (url, _, recorder), client_of(url) as client:
        stream = await client.chat.completions.create(**BODY, stream=True)
        with pytest.raises(openai.APIError) as failed:
            [chunk async for chunk in stream]
        assert failed.value.code == recorder.records[-1].outcome != "ok"
    async with running(broken, secret=None) as (url, _, _), httpx.AsyncClient() as client:
        text = (await client.post(f"{url}/v1/chat/completions", json={**BODY, "stream": True})).text
        assert "[DONE]" not in text
        assert "error" in events_of(text)[-1][1]


async def test_leaving_a_stream_stops_the_upstream():
    calm = {
        "provider": "backup",
        "name": "m",
        "timeouts": {"first_token_s": 60, "idle_s": 60, "total_s": 60},
    }
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url, calm=calm) as (proxy, recorder),
        client_of_application(proxy, recorder) as client,
    ):
        upstream.script(play("stall", after=2))
        call = asyncio.create_task(
            client.post("/v1/chat/completions", json={**BODY, "model": "calm", "stream": True})
        )
        await upstream.wait_for(requests=1, timeout_s=30)
        call.cancel()
        await upstream.wait_for(cancelled=1, timeout_s=30)
        assert recorder.records[-1].outcome == "cancelled"
