"""The LLM proxy over HTTP: accepted and refused requests, the upstream body, the answer."""

import json
import math

import pytest

from tests.support.llm.proxy import KEY
from tests.support.llm.proxy_http import BODY, MESSAGES, assert_envelope, running


def tool_with(parameters):
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


def json_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


async def test_numbers_of_64_bits_are_passed_on_as_they_are():
    tools = tool_with({"minimum": -(2**63), "maximum": 2**64 - 1, "multipleOf": 0.5})
    async with running() as (client, upstream, _):
        assert (await client.post("/proxy", json={**BODY, "tools": tools})).status_code == 200
        assert upstream.requests[-1].body["tools"] == tools


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
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["a"],
        "seed": -3,
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "find"}},
        "response_format": schema,
    }
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
async def test_empty_and_null_fields_are_not_sent_to_the_upstream(change, sent, path):
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
    ("change", "reason"),
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
async def test_bad_input_is_a_400_that_names_the_field(change, reason, path):
    async with running() as (client, upstream, _):
        raw = json.dumps({**BODY, **change})  # httpx itself would refuse NaN
        error = assert_envelope(
            await client.post(path, content=raw), 400, "invalid_request", retryable=False
        )
        assert reason in error["message"]
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


async def test_response_fields_on_a_message_are_dropped():
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
