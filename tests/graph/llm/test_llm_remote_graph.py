"""LLM calls answered by a remote provider, and their accounting."""

import json

import pytest

from tests.support.graph.llm_calls import ask, body, until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420, func_only=True)]


async def test_a_remote_model_answers_through_its_provider(graph, client):
    graph.upstream("ok")
    answer = await ask(
        client, model="gpt-4.1-mini", messages=[{"role": "user", "content": "Привіт"}]
    )
    assert (answer["provider"], answer["model_resolved"]) == ("openai", "gpt-4.1-mini")
    assert answer["content"] == "Echo: Привіт"
    assert answer["usage"]["total_tokens"] > 0


async def test_a_failing_remote_falls_back_to_the_engine(graph, client):
    graph.upstream("http_503")
    answer = await ask(client, model="gpt-4", temperature=0, max_tokens=20)
    outcomes = [attempt["outcome"] for attempt in answer["attempts"]]
    assert (answer["provider"], outcomes) == (
        "local",
        ["upstream_unavailable", "upstream_unavailable", "ok"],
    )


async def test_leaving_a_remote_stream_closes_the_upstream(graph, client):
    graph.upstream("stall?after=3")
    async with client.stream("POST", "/internal/llm/stream", json=body("gpt-4.1-mini")) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                break

    async def closed():
        return graph.upstream()["cancelled"] == 1

    assert await until(closed)


async def test_usage_is_summed_by_agent_and_model(graph, client):
    graph.upstream("ok")
    caller = {"agent_id": "agent:counted", "microdao_id": "microdao:9"}
    for _ in range(5):
        await client.post("/internal/llm/proxy", json={**body("gpt-4.1-mini"), "metadata": caller})

    async def summed():
        page = (
            await client.get(
                "/internal/llm/usage",
                params={"agent_id": "agent:counted", "group_by": "model,provider"},
            )
        ).json()
        return page["rows"] if page["rows"] and page["rows"][0]["calls"] == 5 else None

    (row,) = await until(summed)
    assert (row["model"], row["provider"], row["errors"]) == ("gpt-4.1-mini", "openai", 0)
    assert row["total_tokens"] > 0


async def test_every_call_is_one_event_without_contents(graph, client):
    graph.upstream("ok")
    await client.post(
        "/internal/llm/proxy",
        json=body("gpt-4.1-mini", messages=[{"role": "user", "content": "таємне слово"}]),
        headers={"x-request-id": "event-test-1"},
    )

    async def logged():
        return [event for event in graph.events("llm") if event.get("request_id") == "event-test-1"]

    (event,) = await until(logged)
    assert (event["event"], event["agent_id"], event["provider"], event["outcome"]) == (
        "llm.call",
        "agent:sofia",
        "openai",
        "ok",
    )
    assert "таємне" not in json.dumps(graph.events("llm"), ensure_ascii=False)
