"""The HTTP contract of the LLM proxy, over the real adapters and a scripted upstream; Serve is not part of it."""

import asyncio
import json
import math
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.llm.limits import InProcessAuthority
from tests.support.llm.proxy import CALLER, KEY, client_of, impatient, ingress_of, proxy_over
from tests.support.llm.upstream import ScriptedUpstream, play
from tests.support.uvicorn_server import served

MESSAGES = [{"role": "user", "content": "Яка столиця України?"}]
BODY = {"model": "plain", "messages": MESSAGES, "metadata": CALLER}


@asynccontextmanager
async def running(plays="ok", **options):
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url, **options) as (proxy, recorder),
    ):
        upstream.script(plays)
        async with client_of(proxy, recorder) as client:
            yield client, upstream, recorder


def tool_with(parameters):
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


def json_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


async def test_numbers_of_64_bits_are_passed_on_as_they_are():
    tools = tool_with({"minimum": -(2**63), "maximum": 2**64 - 1, "multipleOf": 0.5})
    async with running() as (client, upstream, _):
        assert (await client.post("/proxy", json={**BODY, "tools": tools})).status_code == 200
        assert upstream.requests[-1].body["tools"] == tools


def events_of(text):
    """[(name, data)] of an SSE body."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def assert_envelope(response, status, kind, *, retryable):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["type"], error["retryable"]) == (kind, retryable)
    assert error["message"]
    assert error["request_id"]
    for secret in (
        KEY,
        "127.0.0.1",
        "http://",
        "Traceback",
        ".py",
        str(Path(__file__).parents[2]),
        "site-packages",
    ):
        assert secret not in response.text
    return error


async def test_an_answer_has_the_contracts_fields():
    async with running() as (client, upstream, _):
        answer = (await client.post("/proxy", json=BODY)).json()
        assert answer["content"] == "Echo: Яка столиця України?"
        assert (answer["provider"], answer["model_resolved"], answer["finish_reason"]) == (
            "openai",
            "gpt-4.1-mini",
            "stop",
        )
        assert (
            answer["usage"]["total_tokens"]
            == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
            > 0
        )
        assert [attempt["outcome"] for attempt in answer["attempts"]] == ["ok"]
        sent = upstream.requests[-1]
        assert sent.body == {"model": "gpt-4.1-mini", "messages": MESSAGES}
        assert sent.headers["authorization"] == f"Bearer {KEY}"


async def test_every_optional_field_reaches_the_upstream():
    tool = {
        "type": "function",
        "function": {"name": "find", "description": "d", "parameters": {"type": "object"}},
    }
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 1}}}
    options = {
        "max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "stop": ["a"], "seed": -3, "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "find"}}, "response_format": schema,
    }  # fmt: skip
    async with running() as (client, upstream, _):
        response = await client.post("/proxy", json={**BODY, **options, "timeout_s": 5})
        assert response.status_code == 200
        assert upstream.requests[-1].body == {
            "model": "gpt-4.1-mini",
            "messages": MESSAGES,
            **options,
        }


NULLS = {"name": None, "tool_calls": None, "tool_call_id": None, "refusal": None}


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        ({"top_p": 0}, {"top_p": 0}),
        ({"messages": [{**MESSAGES[0], **NULLS}]}, {"messages": MESSAGES}),
        ({"messages": [{**MESSAGES[0], "tool_calls": [], "name": ""}]}, {"messages": MESSAGES}),
        ({"tools": [], "tool_choice": "auto"}, {}),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "description": None,
                            "parameters": None,
                            "strict": None,
                        },
                    }
                ]
            },
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/proxy", "/v1/chat/completions"])
async def test_what_clients_send_beside_the_point_reaches_no_upstream(change, sent, path):
    async with running() as (client, upstream, _):
        response = await client.post(path, json={**BODY, **change})
        assert response.status_code == 200, response.text
        assert upstream.requests[-1].body == {"model": "gpt-4.1-mini", "messages": MESSAGES, **sent}


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ("", "{}"),
        (" \n", "{}"),
        (None, "{}"),
        ({}, "{}"),
        ({"місто": 1}, '{"місто": 1}'),
        ("x", "x"),
    ],
)
@pytest.mark.parametrize("path", ["/proxy", "/v1/chat/completions"])
async def test_the_arguments_of_replayed_tool_calls_are_json_texts(arguments, sent, path):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turn = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12"},
    ]
    async with running() as (client, upstream, _):
        response = await client.post(path, json={**BODY, "messages": [*MESSAGES, *turn]})
        assert response.status_code == 200, response.text
        assert upstream.requests[-1].body["messages"][1]["tool_calls"][0]["function"] == {
            "name": "f",
            "arguments": sent,
        }


async def test_tool_calls_and_reasoning_come_back_apart_from_content():
    async with running("tool_calls") as (client, upstream, _):
        tools = [{"type": "function", "function": {"name": "projects_list", "parameters": {}}}]
        answer = (await client.post("/proxy", json={**BODY, "tools": tools})).json()
        assert answer["tool_calls"][0]["function"]["name"]
        json.loads(answer["tool_calls"][0]["function"]["arguments"])
        upstream.script("reasoning")
        answer = (await client.post("/proxy", json=BODY)).json()
        assert answer["reasoning_content"]
        assert answer["reasoning_content"] not in answer["content"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 2_000_000}]}, "messages[0].content"),
        ({"metadata": None}, "metadata"),
        ({"metadata": {"agent_id": "a"}}, "metadata.microdao_id"),
        ({"metadata": {"agent_id": "a\u0000", "microdao_id": "b"}}, "metadata.agent_id"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"stop": ["x"] * 17}, "stop"),
        (
            {"tools": [{"type": "function", "function": {"name": "has space"}}]},
            "tools[0].function.name",
        ),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"temprature": 1}, "temprature"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        (
            {"tools": tool_with({"maximum": 2**64})},
            "tools[0].function.parameters.maximum: an integer must fit in 64 bits",
        ),
        ({"tools": tool_with({"enum": [1, -(2**63) - 1]})}, "tools[0].function.parameters.enum[1]"),
        (
            {"tools": tool_with({"minimum": math.nan})},
            "tools[0].function.parameters.minimum: must be a finite number",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "odd": math.inf}}]},
            "tools[0].function.odd",
        ),
        (
            {"response_format": json_format({"const": 10**30})},
            "response_format.json_schema.schema.const",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "detail": 2**70}]}]},
            "messages[0].content[0].detail",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/proxy", "/stream"])
async def test_bad_input_is_a_400_that_names_the_field(change, told, path):
    async with running() as (client, upstream, _):
        raw = json.dumps({**BODY, **change})  # httpx itself would refuse NaN
        error = assert_envelope(
            await client.post(path, content=raw), 400, "invalid_request", retryable=False
        )
        assert told in error["message"]
        assert upstream.total == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b"null",
        b'{"model": "plain", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda raw: repr(raw[:20]),
)
async def test_a_body_that_is_no_json_object_is_a_400(raw):
    async with running() as (client, _, _):
        assert_envelope(
            await client.post("/proxy", content=raw), 400, "invalid_request", retryable=False
        )


async def test_what_clients_keep_on_a_message_is_dropped():
    async with running() as (client, upstream, _):
        message = {**MESSAGES[0], "refusal": None, "annotations": []}
        assert (
            await client.post("/proxy", json={**BODY, "messages": [message]})
        ).status_code == 200
        assert upstream.requests[-1].body["messages"] == MESSAGES


async def test_nan_is_refused():
    async with running() as (client, _, _):
        raw = json.dumps({**BODY, "temperature": math.nan})
        assert (
            "temperature"
            in assert_envelope(
                await client.post("/proxy", content=raw), 400, "invalid_request", retryable=False
            )["message"]
        )


async def test_a_body_over_the_bound_is_a_413_announced_or_not():
    async with running() as (client, _, _):

        async def endless():
            for _ in range(10):
                yield b"x" * (1 << 20)

        for content in (b"x" * (9 << 20), endless()):
            assert_envelope(
                await client.post("/proxy", content=content),
                413,
                "payload_too_large",
                retryable=False,
            )


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
            "id": "plain", "provider": "openai", "name": "gpt-4.1-mini", "available": True, "fallbacks": [],
            "circuit": {"state": "closed", "in_flight": 0},
        }  # fmt: skip
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
async def test_what_the_caller_did_wrong_is_not_tried_elsewhere(refusal):
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


async def test_a_stream_ends_with_usage_and_who_answered():
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


async def test_a_stream_that_breaks_half_way_is_finished_where_the_model_says_so():
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


async def test_a_provider_that_is_down_is_left_alone_and_the_caller_told_for_how_long():
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


async def test_one_event_and_one_record_a_call_without_contents():
    async with running() as (client, _, recorder):
        await client.post("/proxy", json=BODY, headers={"x-request-id": "req-42"})
        (call,) = recorder.events
        assert call["event"] == "llm.call"
        assert (
            call["request_id"],
            call["agent_id"],
            call["microdao_id"],
            call["logical_model"],
        ) == (
            "req-42",
            "agent:sofia",
            "microdao:7",
            "plain",
        )
        assert call["total_tokens"] > 0
        assert "столиця" not in str(recorder.events) + str(recorder.records)
        assert len(recorder.records) == 1


async def test_cancelling_a_call_stops_the_upstream_and_settles_it():
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url) as (proxy, recorder),
        client_of(proxy, recorder) as client,
    ):
        upstream.script("silence")
        call = asyncio.create_task(client.post("/proxy", json=BODY))
        await upstream.wait_for(requests=1)
        call.cancel()
        await upstream.wait_for(cancelled=1, timeout_s=30)
        assert recorder.records[-1].outcome == "cancelled"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-Internal-Secret": "wrong"}, 401),
        ({"X-Internal-Secret": "open sesame"}, 200),
        ({"Authorization": "Bearer open sesame"}, 200),
        ({"Authorization": "Basic open sesame"}, 401),
        ({"X-Internal-Secret": "boss"}, 200),
    ],
    ids=str,
)
async def test_credentials(headers, status):
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url) as (proxy, recorder),
        client_of(proxy, recorder, internal="open sesame", admin="boss") as client,
    ):
        assert (await client.post("/proxy", json=BODY, headers=headers)).status_code == status
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health")).status_code == 503


async def test_presented_credentials_are_ignored_when_none_is_configured():
    async with running() as (client, _, _):
        assert (
            await client.post("/proxy", json=BODY, headers={"X-Internal-Secret": "whatever"})
        ).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/proxy", 405), ("DELETE", "/models", 405), ("GET", "/", 404)],
)
async def test_unknown_routes_answer_in_the_envelope(method, path, status):
    async with running() as (client, _, _):
        response = await client.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["type"] in {"not_found", "method_not_allowed"}


async def test_a_trailing_slash_changes_nothing():
    async with running() as (client, _, _):
        assert (await client.post("/proxy/", json=BODY)).status_code == 200
        assert (await client.get("/models/")).status_code == 200


async def test_more_than_a_replica_may_take_is_refused_at_once():
    async with ScriptedUpstream() as upstream, proxy_over(upstream.base_url) as (proxy, recorder):
        upstream.script("silence")
        async with client_of(proxy, recorder, max_concurrent=2) as client:
            held = [asyncio.create_task(client.post("/proxy", json=BODY)) for _ in range(2)]
            await upstream.wait_for(requests=2)
            response = await client.post("/proxy", json=BODY)
            assert_envelope(response, 503, "overloaded", retryable=True)
            assert response.headers["Retry-After"] == "1"
            for call in held:
                call.cancel()
            await asyncio.wait(held)
            assert (await client.get("/models")).status_code == 200


async def test_a_limit_answers_429_with_retry_after():
    async with running(limit=2, source=InProcessAuthority()) as (client, upstream, _):
        statuses = [(await client.post("/proxy", json=BODY)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        refused = await client.post("/stream", json=BODY)
        assert_envelope(refused, 429, "rate_limited", retryable=True)
        assert 1 <= int(refused.headers["Retry-After"]) <= 62
        assert upstream.total == 2


async def test_a_defect_is_a_500_without_its_text():
    async with proxy_over("http://127.0.0.1:9/v1") as (_proxy, recorder):

        class Broken:
            async def complete(self, *_):
                raise RuntimeError("secret detail")

        async with client_of(Broken(), recorder) as client:
            response = await client.post("/proxy", json=BODY)
            assert_envelope(response, 500, "internal", retryable=False)
            assert "secret detail" not in response.text
            assert recorder.events[-1]["event"] == "http.defect"


async def test_a_caller_that_leaves_in_the_middle_of_its_body_is_no_defect():
    async with ScriptedUpstream() as upstream, proxy_over(upstream.base_url) as (proxy, recorder):
        ingress = ingress_of(proxy, recorder)
        async with served(ingress) as url, asyncio.timeout(30):
            _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(
                b'POST /proxy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"model"'
            )
            while not ingress._places.arriving:
                await asyncio.sleep(0.01)
            writer.close()
            while ingress._places.arriving:
                await asyncio.sleep(0.01)
    assert recorder.events == []
