"""LLM calls in tests of the real graph."""

import asyncio
import time

CALLER = {"agent_id": "agent:sofia", "microdao_id": "microdao:7"}
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


def body(model="dagi-local-8b", messages=FRANCE, **options):
    return {"model": model, "messages": messages, "metadata": CALLER, **options}


async def ask(client, **options):
    response = await client.post("/internal/llm/proxy", json=body(**options))
    assert response.status_code == 200, response.text
    return response.json()


async def until(condition, timeout_s=60.0):
    """Waits until `await condition()` returns something true, and returns it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := await condition():
            return found
        await asyncio.sleep(0.2)
    raise AssertionError("did not come true in time")


async def engine_load(client):
    rows = (await client.get("/internal/llm/models")).json()["models"]
    return next(row["load"] for row in rows if row["provider"] == "local")


def most_in_a_minute(calls):
    """The largest number of `calls` [(began, ended)] that certainly lie in one minute."""
    return max(
        (
            sum(start <= began and ended < start + 60 for began, ended in calls)
            for start, _ in calls
        ),
        default=0,
    )
