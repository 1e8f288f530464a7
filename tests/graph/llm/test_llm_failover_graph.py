"""Fail-over with the real engine: it finishes a remote model's answer; its queue moves calls."""

import asyncio
import json
import time

import pytest

pytestmark = [pytest.mark.graph, pytest.mark.timeout(300, func_only=True)]

CALLER = {"agent_id": "agent:sofia", "microdao_id": "microdao:7"}


def body(model, prompt, **options):
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "metadata": CALLER,
        **options,
    }


async def test_the_engine_finishes_what_a_remote_model_began(graph, client):
    graph.upstream("cut?after=4&text=The capital of France is Paris")
    asked = body("resumed", "What is the capital of France?", temperature=0, max_tokens=30)
    text, last, names = "", {}, []
    async with client.stream("POST", "/internal/llm/stream", json=asked) as response:
        async for line in response.aiter_lines():
            if line.startswith("event:"):
                names.append(line)
            if line.startswith("data:"):
                last = json.loads(line[5:])
                text += last.get("delta", "")
    assert names == []
    assert text.startswith("The capital of France")
    assert "Paris" in text[len("The capital of France") :], "the engine goes on with the sentence"
    assert text.count("The capital of France") == 1
    assert last["written_by"] == ["openai/first", "local/smollm2-135m-instruct"]
    assert (last["provider"], [attempt["outcome"] for attempt in last["attempts"]]) == (
        "local",
        ["upstream_invalid_response", "ok"],
    )
    assert last["usage"]["completion_tokens"] > 4


async def test_calls_spill_over_while_the_engine_has_a_queue_and_come_back(graph, client):
    graph.upstream("ok")

    async def asked_first():
        """Returns the first target. The call is short: the engine reports its queue every 2 s."""
        response = await client.post(
            "/internal/llm/proxy",
            json=body("spilling", "Hi", max_tokens=1, temperature=0, timeout_s=20),
        )
        assert response.status_code == 200, response.text
        return response.json()["attempts"][0]["provider"]

    async def until(provider, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while (found := await asked_first()) != provider:
            assert time.monotonic() < deadline, f"calls still go to `{found}`"
            await asyncio.sleep(0.2)

    await until("local")
    long = body(
        "dagi-local-8b",
        "Count from one to one thousand in words.",
        max_tokens=1500,
        temperature=0.7,
    )
    crowd = [
        asyncio.create_task(
            client.post("/internal/llm/proxy", json={**long, "seed": seed}, timeout=120)
        )
        for seed in range(48)
    ]
    try:
        await until("openai")
    finally:
        for call in crowd:
            call.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
    await until("local")
