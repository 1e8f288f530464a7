"""`/v1/chat/completions` and `/v1/models`: with the official client over real HTTP, and badly asked."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.llm.test_proxy_http import events_of
from tests.support.llm.limits import InProcessAuthority
from tests.support.llm.proxy import client_of as client_of_application
from tests.support.llm.proxy import impatient, ingress_of, proxy_over
from tests.support.llm.upstream import ScriptedUpstream, play
from tests.support.uvicorn_server import served

MESSAGES = [{"role": "user", "content": "Яка столиця України?"}]
BODY = {"model": "plain", "messages": MESSAGES}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@asynccontextmanager
async def running(plays="ok", *, secret="s3cret", limit=None, max_concurrent=100, **options):
    source = InProcessAuthority() if limit else None
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url, limit=limit, source=source, **options) as (proxy, recorder),
    ):
        upstream.script(plays)
        app = ingress_of(proxy, recorder, internal=secret, max_concurrent=max_concurrent)
        async with served(app, root_path="/internal/llm") as url:
            yield url, upstream, recorder


def client_of(url, key="s3cret", **options):
    return openai.AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0, **options)


async def test_the_official_client_gets_a_whole_answer():
    async with running() as (url, upstream, recorder), client_of(url) as client:
        answer = await client.chat.completions.create(
            **BODY, temperature=0, max_completion_tokens=9, user="u-1", service_tier="flex"
        )
        (choice,) = answer.choices
        assert choice.message.content == "Echo: Яка столиця України?"
        assert (choice.finish_reason, choice.message.role, choice.message.tool_calls) == (
            "stop",
            "assistant",
            None,
        )
        assert answer.model == "gpt-4.1-mini"
        assert (
            answer.usage.total_tokens
            == answer.usage.prompt_tokens + answer.usage.completion_tokens
            > 0
        )
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0
        assert answer.id.startswith("chatcmpl-")
        sent = upstream.requests[-1].body
        assert (sent["max_tokens"], sent["user"], sent["service_tier"], sent["temperature"]) == (
            9,
            "u-1",
            "flex",
            0,
        )
        assert (recorder.records[-1].agent_id, recorder.records[-1].microdao_id) == (
            "agent:unnamed",
            "microdao:unnamed",
        )


async def test_the_synchronous_client_works_too():
    async with running() as (url, _, _):

        def ask():
            with openai.OpenAI(api_key="s3cret", base_url=f"{url}/v1/", max_retries=0) as client:
                return client.chat.completions.create(**BODY).choices[0].message.content

        assert await asyncio.to_thread(ask) == "Echo: Яка столиця України?"


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_stream_of_the_official_client(include_usage):
    async with running() as (url, _, recorder), client_of(url) as client:
        options = {"stream_options": {"include_usage": True}} if include_usage else {}
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(**BODY, stream=True, **options)
        ]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "Echo: Яка столиця України?"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert len({chunk.id for chunk in chunks}) == 1
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert reasons == [None] * (len(reasons) - 1) + ["stop"]
        assert ([chunk.usage is not None for chunk in chunks][-1], bool(chunks[-1].choices)) == (
            include_usage,
            not include_usage,
        )
        assert recorder.records[-1].streamed


async def test_the_raw_stream_ends_with_done():
    async with running(secret=None) as (url, _, _), httpx.AsyncClient() as client:
        text = (await client.post(f"{url}/v1/chat/completions", json={**BODY, "stream": True})).text
        assert text.endswith("data: [DONE]\n\n")
        assert all(
            "usage" not in json.loads(line[6:])
            for line in text.splitlines()
            if line.startswith("data: {")
        )


async def test_tools_whole_and_streamed():
    async with running("tool_calls") as (url, upstream, _), client_of(url) as client:
        asked = {**BODY, "tools": [TOOL], "tool_choice": "required"}
        message = (await client.chat.completions.create(**asked)).choices[0].message
        assert message.content is None
        assert message.tool_calls[0].function.name == "get_weather"
        assert upstream.requests[-1].body["tools"] == [TOOL]
        async with client.chat.completions.stream(**asked) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].finish_reason == "tool_calls"
        assert (
            json.loads(final.choices[0].message.tool_calls[0].function.arguments)["city"] == "Київ"
        )
        # The client's own object goes back as a message, with whatever it keeps there.
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12 °C"}
        upstream.script("ok")
        answer = await client.chat.completions.create(
            model="plain", messages=[*MESSAGES, message, result]
        )
        assert answer.choices[0].finish_reason == "stop"
        assert set(upstream.requests[-1].body["messages"][1]) == {"role", "content", "tool_calls"}


class City(BaseModel):
    name: str


async def test_structured_output():
    async with (
        running(play("ok", text='{"name": "Київ"}')) as (url, upstream, _),
        client_of(url) as client,
    ):
        parsed = (
            (await client.chat.completions.parse(**BODY, response_format=City))
            .choices[0]
            .message.parsed
        )
        assert parsed == City(name="Київ")
        assert upstream.requests[-1].body["response_format"]["json_schema"]["schema"][
            "required"
        ] == ["name"]


async def test_text_parts_and_reasoning():
    async with running("reasoning") as (url, upstream, _), client_of(url) as client:
        parts = [{"type": "text", "text": "Яка "}, {"type": "text", "text": "столиця?"}]
        message = (
            (
                await client.chat.completions.create(
                    model="plain", messages=[{"role": "user", "content": parts}]
                )
            )
            .choices[0]
            .message
        )
        assert message.content == "Echo: Яка столиця?"
        assert message.reasoning_content
        assert upstream.requests[-1].body["messages"][0]["content"] == parts


@pytest.mark.parametrize(
    ("headers", "metadata", "expected"),
    [
        (
            {},
            {"agent_id": "agent:sofia", "microdao_id": "microdao:7", "channel_id": "channel:1"},
            ("agent:sofia", "microdao:7", "channel:1"),
        ),
        (
            {"X-Agent-Id": "agent:x", "X-Microdao-Id": "microdao:8"},
            None,
            ("agent:x", "microdao:8", None),
        ),
        (
            {"X-Microdao-Id": "microdao:8"},
            {"agent_id": "agent:sofia", "topic": "demo"},
            ("agent:sofia", "microdao:8", None),
        ),
        (
            {"X-Agent-Id": "agent:x"},
            {"agent_id": "", "microdao_id": "microdao:9", "channel_id": None},
            ("agent:x", "microdao:9", None),
        ),
        (
            {"X-Agent-Id": "agent:x", "X-Microdao-Id": "microdao:8"},
            {"topic": "demo"},
            ("agent:x", "microdao:8", None),
        ),
    ],
)
async def test_identity(headers, metadata, expected):
    async with running() as (url, upstream, recorder), client_of(url) as client:
        options = {"metadata": metadata} if metadata else {}
        await client.chat.completions.create(**BODY, **options, extra_headers=headers)
        record = recorder.records[-1]
        assert (record.agent_id, record.microdao_id, record.channel_id) == expected
        assert "metadata" not in upstream.requests[-1].body


async def test_models_with_the_official_client():
    async with (
        running(**{"org/model:1": {"provider": "backup", "name": "m"}}) as (url, _, _),
        client_of(url) as client,
    ):
        names = {model.id: model.owned_by async for model in client.models.list()}
        assert (names["plain"], names["here"], names["embedder"]) == ("openai", "local", "local")
        assert (await client.models.retrieve("plain")).id == "plain"
        assert (await client.models.retrieve("org/model:1")).owned_by == "backup"
        with pytest.raises(openai.NotFoundError) as refused:
            await client.models.retrieve("nope")
        assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "told", "param"),
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
async def test_bad_requests_are_told_in_openais_shape(change, told, param):
    async with running(secret=None) as (url, upstream, _), httpx.AsyncClient() as client:
        response = await client.post(f"{url}/v1/chat/completions", json={**BODY, **change})
        error = response.json()["error"]
        assert response.status_code == (404 if "model" in change else 400)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert told in error["message"]
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


async def test_a_body_over_the_bound_is_told_in_openais_shape():
    async with running(secret=None) as (url, _, _), httpx.AsyncClient() as client:
        response = await client.post(f"{url}/v1/chat/completions", content=b"x" * (9 << 20))
        assert (response.status_code, response.json()["error"]["code"]) == (
            413,
            "payload_too_large",
        )


async def test_a_full_replica_and_a_limit_are_told_in_openais_shape():
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


REFUSAL = "Вибачте, з цим не допоможу."


async def test_a_refusal_is_told_as_one_and_goes_back_as_the_turn_that_it_was():
    async with running(play("ok", refusal=REFUSAL)) as (url, upstream, _), client_of(url) as client:
        answer = await client.chat.completions.create(**BODY)
        message = answer.choices[0].message
        assert (message.refusal, message.content) == (REFUSAL, None)
        again = [
            *BODY["messages"],
            message.model_dump(exclude_none=True),
            {"role": "user", "content": "Чому?"},
        ]
        await client.chat.completions.create(model=BODY["model"], messages=again)
        assert upstream.requests[-1].body["messages"][1] == {
            "role": "assistant",
            "content": REFUSAL,
        }


async def test_a_streamed_refusal_is_told_as_one():
    chunks = [
        {"choices": [{"index": 0, "delta": {"refusal": part}, "finish_reason": None}]}
        for part in ("Вибачте, ", "ні.")
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    async with (
        running(play("chunks", chunks=chunks)) as (url, _, recorder),
        client_of(url) as client,
    ):
        found = [chunk async for chunk in await client.chat.completions.create(**BODY, stream=True)]
        assert (
            "".join(chunk.choices[0].delta.refusal or "" for chunk in found if chunk.choices)
            == "Вибачте, ні."
        )
        assert [attempt["outcome"] for attempt in found[-1].attempts] == ["ok"]
        assert recorder.records[-1].completion_tokens > 0
