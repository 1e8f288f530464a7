"""LLM calls that the real local engine answers."""

import asyncio
import itertools
import json
import time

import httpx
import pytest
from jsonschema import validate

from tests.support.graph.llm_calls import ask, body, engine_load, until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420, func_only=True)]


async def test_the_local_engine_answers(client):
    answer = await ask(client, temperature=0)
    assert "Paris" in answer["content"]
    assert (answer["provider"], answer["model_resolved"], answer["finish_reason"]) == (
        "local",
        "smollm2-135m-instruct",
        "stop",
    )
    assert (
        answer["usage"]["total_tokens"]
        == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    )


async def test_a_stream_of_the_engine_arrives_token_by_token(client):
    arrivals, names, text, last = [], [], "", {}
    async with client.stream(
        "POST", "/internal/llm/stream", json=body(max_tokens=40, temperature=0)
    ) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("event:"):
                names.append(line)
            if line.startswith("data:"):
                arrivals.append(time.monotonic())
                last = json.loads(line[5:])
                text += last.get("delta", "")
    assert names == []
    assert "Paris" in text
    assert last["usage"]["completion_tokens"] >= len(arrivals) - 2 > 4
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    assert sum(gap > 0.001 for gap in gaps) >= 5, "the tokens came in one piece"


async def test_leaving_a_stream_stops_the_generation(client):
    before = await engine_load(client)
    long = body(
        messages=[{"role": "user", "content": "Count from one to one thousand in words."}],
        max_tokens=1500,
        temperature=0.7,
        seed=1,
    )
    async with client.stream("POST", "/internal/llm/stream", json=long) as response:
        seen = 0
        async for line in response.aiter_lines():
            seen += line.startswith("data:")
            if seen >= 5:
                break

    async def stopped():
        load = await engine_load(client)
        return load if load["aborted"] > before["aborted"] and load["running"] == 0 else None

    after = await until(stopped)
    await asyncio.sleep(3)
    assert (await engine_load(client))["generated_tokens"] - after["generated_tokens"] <= 5
    assert after["generated_tokens"] - before["generated_tokens"] < 1000


async def test_leaving_a_whole_call_stops_the_generation(client):
    before = await engine_load(client)
    long = body(
        messages=[{"role": "user", "content": "Write a very long story."}],
        max_tokens=1500,
        temperature=0.7,
        seed=2,
    )
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/internal/llm/proxy", json=long, timeout=1.5)

    async def stopped():
        load = await engine_load(client)
        return load if load["aborted"] > before["aborted"] and load["running"] == 0 else None

    after = await until(stopped)
    assert (
        0 < after["generated_tokens"] - before["generated_tokens"] < 1000
    )  # it had begun and was stopped


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {
                "kind": {"const": "answer"},
                "city": {"type": "string"},
                "sure": {"type": "boolean"},
            },
            "required": ["kind", "city", "sure"],
            "additionalProperties": False,
        },
        {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 2, "maxItems": 3},
        {"const": "yes"},
    ],
    ids=["object", "array", "const"],
)
async def test_a_json_schema_is_kept_even_by_a_tiny_model(client, schema):
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = await ask(client, response_format=wanted, max_tokens=300)
    assert answer["finish_reason"] == "stop"
    validate(json.loads(answer["content"]), schema)


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "projects_list"}}],
    ids=["required", "named"],
)
async def test_a_forced_tool_is_called_with_valid_arguments(client, choice):
    parameters = {
        "type": "object",
        "properties": {"microdao_id": {"type": "string"}, "state": {"enum": ["open", "closed"]}},
        "required": ["microdao_id", "state"],
        "additionalProperties": False,
    }
    tool = {
        "type": "function",
        "function": {
            "name": "projects_list",
            "description": "Lists projects",
            "parameters": parameters,
        },
    }
    messages = [{"role": "user", "content": "Which projects does microdao:7 have?"}]
    answer = await ask(client, messages=messages, tools=[tool], tool_choice=choice, max_tokens=300)
    (call,) = answer["tool_calls"]
    assert call["function"]["name"] == "projects_list"
    validate(json.loads(call["function"]["arguments"]), parameters)


async def test_a_prompt_over_the_engines_context_is_refused_with_the_bound(client):
    response = await client.post(
        "/internal/llm/proxy", json=body(messages=[{"role": "user", "content": "слово " * 30_000}])
    )
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "context_length_exceeded"


def test_the_proxys_process_holds_no_model_library(graph):
    replicas = graph.replicas("llm", "LLMProxy")
    assert replicas
    for replica in replicas:
        mapped = " ".join(region.path for region in replica.memory_maps())
        assert "psycopg" in mapped, "the process was not looked into"
        assert not any(name in mapped for name in ("/torch/", "/vllm/", "libtorch"))
