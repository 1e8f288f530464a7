"""Limits of the LLM proxy across two replicas, also after the limit authority was killed."""

import asyncio
import signal
import time

import pytest

from tests.support.graph.llm_calls import CALLER, body, most_in_a_minute, until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420, func_only=True)]


async def test_two_replicas_share_one_limit(graph, client):
    graph.upstream("ok")
    assert len(graph.replicas("llm", "LLMProxy")) == 2
    strict = {**body("gpt-4.1-mini"), "metadata": {**CALLER, "agent_id": "agent:strict"}}
    answers = await asyncio.gather(
        *(client.post("/internal/llm/proxy", json=strict) for _ in range(90))
    )
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert 26 <= statuses.count(200) <= 30
    assert graph.upstream()["total"] == statuses.count(200)
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(refused.headers["Retry-After"]) <= 62

    async def warned():
        return [
            event["limit"]
            for event in graph.events("limits")
            if event["event"] == "limits.warning" and event["subject"] == "agent:strict"
        ]

    assert await until(warned) == ["agent.requests_per_minute"]


async def test_a_killed_limit_authority_learns_what_was_spent_before_it_grants_again(graph, client):
    graph.upstream("ok")
    asked = {
        **body("gpt-4.1-mini", max_tokens=20),
        "metadata": {**CALLER, "agent_id": "agent:enduring"},
    }
    admitted, refusals = [], []

    async def call():
        began = time.monotonic()
        response = await client.post("/internal/llm/proxy", json=asked)
        if response.status_code == 200:
            admitted.append((began, time.monotonic()))
        else:
            refusals.append(response.json()["error"])

    for _ in range(5):
        await asyncio.gather(*(call() for _ in range(5)))
    assert len(admitted) == 25, refusals
    victims = graph.named("LimitAuthority")
    assert victims
    for process in victims:
        process.send_signal(signal.SIGKILL)

    async def exhausted():
        await asyncio.gather(*(call() for _ in range(4)))
        return any(
            error["type"] == "rate_limited"
            and error["details"]["limit"] == "agent.requests_per_minute"
            for error in refusals
        )

    assert await until(exhausted, 90)
    assert {error["type"] for error in refusals} <= {"rate_limited", "limits_unavailable"}
    assert len(admitted) >= 37
    assert most_in_a_minute(admitted) <= 40
    states = (
        await client.get("/internal/llm/limits", params={"agent_id": "agent:enduring"})
    ).json()["limits"]
    states_by_limit = {row["limit"]: row for row in states}
    assert set(states_by_limit) == {
        f"agent.{meter}"
        for meter in ("requests_per_minute", "tokens_per_minute", "concurrent_calls", "usd_per_day")
    }
    assert states_by_limit["agent.requests_per_minute"]["left"] <= 3
    assert 0 < states_by_limit["agent.usd_per_day"]["used"] < 5

    async def accounted():
        page = (
            await client.get("/internal/llm/usage", params={"agent_id": "agent:enduring"})
        ).json()
        return page["rows"] and page["rows"][0]["calls"] == len(admitted) and page["rows"][0]

    row = await until(accounted, 30)
    assert (row["errors"], row["unpriced"]) == (0, 0)
    assert float(row["cost_usd"]) > 0

    async def well():
        return (await client.get("/health")).status_code == 200

    assert await until(well, 120)
