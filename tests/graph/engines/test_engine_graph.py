"""Requests to the engine through the proxy on the real graph."""

import asyncio
import json
import time

import pytest
import yaml
from jsonschema import validate

pytestmark = [pytest.mark.graph, pytest.mark.timeout(300, func_only=True)]

TOOL = {
    "type": "function",
    "function": {
        "name": "projects_list",
        "description": "Lists the projects of a microDAO",
        "parameters": {
            "type": "object",
            "properties": {
                "microdao_id": {"type": "string"},
                "status": {"enum": ["open", "closed"]},
            },
            "required": ["microdao_id", "status"],
            "additionalProperties": False,
        },
    },
}
NODE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
    },
    "required": ["name", "children"],
    "additionalProperties": False,
}


async def ask(client, prompt="Tell me something.", *, messages=None, status=200, **options):
    body = {
        "model": "dagi-local-8b",
        "messages": messages or [{"role": "user", "content": prompt}],
        "metadata": {"agent_id": "agent:sofia", "microdao_id": "microdao:7"},
        **options,
    }
    response = await client.post("/internal/llm/proxy", json=body, timeout=200)
    assert response.status_code == status, response.text
    return response.json()


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "$defs": {"node": NODE},
            "properties": {"root": {"$ref": "#/$defs/node"}},
            "required": ["root"],
        },
        {
            "type": "object",
            "properties": {"мова": {"const": "українська"}, "a": {"type": ["string", "null"]}},
            "required": ["мова", "a"],
        },
        {"type": "array", "items": {"type": "string"}, "minItems": 2},
    ],
    ids=["recursive", "ukrainian", "list"],
)
async def test_shaped_answers_end_by_themselves(client, schema):
    answer = await ask(
        client,
        "Describe a small project about trees.",
        response_format=schema_format(schema),
        max_tokens=400,
    )
    assert answer["finish_reason"] == "stop", answer["content"]
    validate(json.loads(answer["content"]), schema)


async def test_without_a_forced_tool_the_answer_is_text(client):
    answer = await ask(
        client, "What is the capital of France?", tools=[TOOL], tool_choice="none", max_tokens=20
    )
    assert "Paris" in answer["content"]
    assert not answer.get("tool_calls")


async def test_the_model_takes_a_tools_result(client):
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "projects_list", "arguments": '{"microdao_id":"microdao:7"}'},
    }
    messages = [
        {"role": "user", "content": "Which projects are open?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "garden, library"},
    ]
    assert (await ask(client, messages=messages, tools=[TOOL], max_tokens=20))["content"]


async def test_a_seed_repeats_a_random_answer(client):
    first, second = [await ask(client, temperature=1.0, seed=7, max_tokens=24) for _ in range(2)]
    assert first["content"] == second["content"]


async def test_the_default_temperature_is_the_configurations(client):
    first, second = [await ask(client, max_tokens=24) for _ in range(2)]
    assert first["content"] == second["content"]


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": schema_format({"$ref": "#"})},
        {"response_format": schema_format({"type": "banana"})},
        {"response_format": schema_format({"type": "object", "patternProperties": {"^a": {}}})},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    ],
    ids=["endless", "unknown type", "unsupported", "unknown tool"],
)
async def test_options_that_the_engine_cannot_apply_are_refused_as_invalid_requests(
    client, options
):
    error = (await ask(client, status=400, **options))["error"]
    assert error["type"] == "invalid_request"
    assert error["retryable"] is False
    assert "/" not in error["message"]


async def test_more_callers_than_the_queue_holds_are_refused_at_once_and_nobody_is_lost(client):
    async def one(number):
        response = await client.post(
            "/internal/llm/proxy",
            json={
                "model": "dagi-local-8b",
                "messages": [{"role": "user", "content": f"Count from {number} on."}],
                "metadata": {"agent_id": "agent:sofia", "microdao_id": "microdao:7"},
                "max_tokens": 8,
            },
            timeout=200,
        )
        return response.status_code, response.json().get("error", {}).get("type")

    answers = await asyncio.gather(*(one(number) for number in range(180)))
    assert set(answers) <= {(200, None), (503, "overloaded")}, set(answers)
    assert sum(status == 200 for status, _ in answers) >= 64
    assert (503, "overloaded") in answers


async def test_a_reload_changes_the_engines_defaults_in_place(graph, client):
    file = graph.config_dir / "engines.yaml"
    original = file.read_text()
    engines = {process.pid for process in graph.named("EngineCore")}
    changed = yaml.safe_load(original)
    changed["local_llm"]["default_sampling"]["max_tokens"] = 3
    try:
        file.write_text(yaml.safe_dump(changed))
        graph.reload()
        until = time.monotonic() + 60
        while (await ask(client, "Write a poem."))["usage"]["completion_tokens"] != 3:
            assert time.monotonic() < until, "the new default did not arrive"
            await asyncio.sleep(0.5)
    finally:
        file.write_text(original)
        graph.reload()
    assert engines == {process.pid for process in graph.named("EngineCore")}
