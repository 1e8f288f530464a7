"""LLM calls while a proxy replica, PostgreSQL or the engine is killed."""

import asyncio
import contextlib
import signal
import time

import httpx
import pytest

from tests.support.graph.llm_calls import body, most_in_a_minute, until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420, func_only=True)]


async def killed_in_the_middle(graph, client, victim):
    """Kills a replica while the upstream is silent; returns how its calls came into the ledger."""
    graph.upstream("silence")
    who = {"agent_id": "agent:lost", "microdao_id": "microdao:9"}
    calls = [
        asyncio.create_task(
            client.post("/internal/llm/proxy", json={**body("gpt-4.1-mini"), "metadata": who})
        )
        for _ in range(8)
    ]

    async def begun():
        return graph.upstream()["total"] >= 8

    assert await until(begun)
    victim.send_signal(signal.SIGKILL)
    await asyncio.sleep(0.5)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    async def accounted():
        page = (await client.get("/internal/llm/usage", params={"agent_id": "agent:lost"})).json()
        return (
            page["rows"] and page["rows"][0]
            if page["rows"] and page["rows"][0]["calls"] >= 8
            else None
        )

    return await until(accounted, 120)


async def test_a_killed_replica_costs_no_ledger_row_and_comes_back(graph, client):
    graph.upstream("ok")
    caller = {"agent_id": "agent:survivor", "microdao_id": "microdao:9"}
    answered = 0

    async def call():
        nonlocal answered
        try:
            response = await client.post(
                "/internal/llm/proxy", json={**body("gpt-4.1-mini"), "metadata": caller}
            )
            answered += response.status_code == 200
        except httpx.HTTPError:
            pass  # the call was in the killed process

    limited, strict = (
        [],
        {**body("gpt-4.1-mini"), "metadata": {**caller, "agent_id": "agent:bereaved"}},
    )

    async def limited_call():
        began = time.monotonic()
        with contextlib.suppress(httpx.HTTPError):
            if (await client.post("/internal/llm/proxy", json=strict)).status_code == 200:
                limited.append((began, time.monotonic()))

    victim = graph.replicas("llm", "LLMProxy")[0]
    await killed_in_the_middle(graph, client, victim)
    graph.upstream("ok")
    victim = graph.replicas("llm", "LLMProxy")[0]
    for number in range(60):
        await asyncio.gather(*(call() for _ in range(4)), limited_call())
        if number == 20:
            victim.send_signal(signal.SIGKILL)
    assert answered > 120  # half of them, whatever the one replica had in work
    assert limited
    assert most_in_a_minute(limited) <= 30

    async def accounted():
        page = (
            await client.get("/internal/llm/usage", params={"agent_id": "agent:survivor"})
        ).json()
        calls = page["rows"][0]["calls"] if page["rows"] else 0
        return calls if calls >= answered else None

    assert answered <= await until(accounted) <= 240

    async def two_again():
        return len(graph.replicas("llm", "LLMProxy")) == 2

    assert await until(two_again, 120)


async def test_without_postgresql_calls_are_answered_and_accounted_for_later(graph, client):
    graph.upstream("ok")
    caller = {"agent_id": "agent:patient", "microdao_id": "microdao:9"}
    for process in graph.named("postgres"):
        process.send_signal(signal.SIGKILL)
    for _ in range(10):
        response = await client.post(
            "/internal/llm/proxy", json={**body("gpt-4.1-mini"), "metadata": caller}
        )
        assert response.status_code == 200
    limited = {**body("gpt-4.1-mini"), "metadata": {**caller, "agent_id": "agent:thrifty"}}
    statuses = [
        (await client.post("/internal/llm/proxy", json=limited)).status_code for _ in range(8)
    ]
    assert statuses.count(200) in {4, 5}
    assert set(statuses) == {200, 429}

    async def accounted():
        response = await client.get("/internal/llm/usage", params={"agent_id": "agent:patient"})
        assert response.status_code in {200, 503}, response.text
        return (
            response.status_code == 200
            and response.json()["rows"]
            and response.json()["rows"][0]["calls"] == 10
        )

    assert await until(accounted)

    async def well():
        return (await client.get("/health")).status_code == 200

    assert await until(well)


async def test_a_killed_engine_is_reported_and_replaced(graph, client):
    for process in graph.named("EngineCore"):
        process.send_signal(signal.SIGKILL)

    async def reported():
        response = await client.post("/internal/llm/proxy", json=body(max_tokens=5, timeout_s=5))
        return response.status_code == 503 and response.json()["error"]["retryable"]

    assert await until(reported)

    async def back():
        response = await client.post("/internal/llm/proxy", json=body(max_tokens=5, timeout_s=5))
        return response.status_code == 200

    assert await until(back, 240)
