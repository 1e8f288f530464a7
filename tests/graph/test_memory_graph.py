"""Memory on the real graph: replica and embedder are killed during stores; real summaries."""

import asyncio
import contextlib

import httpx
import pytest

from tests.support.memory.documents import pdf

pytestmark = [pytest.mark.graph, pytest.mark.timeout(360, func_only=True)]

PATH = "/internal/agent-memory"
TENANT = {"agent_id": "agent:sofia", "microdao_id": "microdao:killed"}
STORES = 60
CALLERS = 4
PATIENCE_S = 240

PLACES = ("майстерня", "бібліотека", "садок", "кухня", "двір", "дах")
THINGS = (
    "драбина",
    "пилка",
    "насіння",
    "чайник",
    "ліхтар",
    "мотузка",
    "відро",
    "фарба",
    "лопата",
    "рукавиці",
)


def fact(number: int) -> str:
    """Returns texts of which no two share both words."""
    return f"У місці {PLACES[number % 6]} лежить {THINGS[number // 6]}, запис {number}"


async def until(condition, timeout_s=PATIENCE_S):
    """Waits until `await condition()` returns something true, and returns it."""
    async with asyncio.timeout(timeout_s):
        while True:
            if found := await condition():
                return found
            await asyncio.sleep(0.2)


async def stored(client, number):
    """Stores as a careful caller does: retries under the same key until it is acknowledged."""
    body = {
        **TENANT,
        "kind": "conversation",
        "content": {"text": fact(number)},
        "meta": {"n": number},
    }

    async def acknowledged():
        with contextlib.suppress(httpx.TransportError, ValueError):
            response = await client.post(
                f"{PATH}/store",
                json=body,
                headers={"Idempotency-Key": f"graph-{number}"},
                timeout=30,
            )
            return response.json()["id"] if response.status_code == 200 else None

    return await until(acknowledged)


async def listed(client):
    """Returns every item, or None while the application is away."""
    items, cursor = [], {}
    while True:
        response = await client.get(f"{PATH}/items", params={**TENANT, "limit": 100, **cursor})
        if response.status_code != 200:
            return None
        page = response.json()
        items += page["items"]
        if "next_cursor" not in page:
            return items
        cursor = {"cursor": page["next_cursor"]}


async def test_stores_survive_the_death_of_the_replica_and_of_the_embedder(graph, client):
    acknowledged: dict[int, str] = {}
    numbers = iter(range(STORES))

    async def caller():
        for number in numbers:
            acknowledged[number] = await stored(client, number)

    async def kill(application, deployment, after):
        while len(acknowledged) < after:
            await asyncio.sleep(0.01)
        for replica in graph.replicas(application, deployment):
            replica.kill()

    await asyncio.gather(
        kill("engines", "Embedder", STORES // 4),
        kill("memory", "MemoryOrchestrator", STORES // 2),
        *(caller() for _ in range(CALLERS)),
    )
    items = await until(lambda: listed(client))
    assert sorted(item["meta"]["n"] for item in items) == list(range(STORES))
    assert {item["meta"]["n"]: item["id"] for item in items} == acknowledged

    async def indexed(number):
        answer = await client.post(
            f"{PATH}/query", json={**TENANT, "query": fact(number), "limit": 3}, timeout=30
        )
        if answer.status_code != 200 or "degraded" in answer.json():
            return None
        found = answer.json()["items"]
        return found if found and found[0]["id"] == acknowledged[number] else None

    for number in (0, STORES // 4, STORES // 2, STORES - 1):
        assert await until(lambda number=number: indexed(number))


async def test_a_summary_is_written_by_the_model_behind_the_real_proxy(client):
    tenant = {"agent_id": "agent:sofia", "microdao_id": "microdao:summed"}
    for text in ("Маємо 40 саджанців яблунь.", "Толока буде в суботу о десятій."):
        body = {**tenant, "kind": "conversation", "content": {"text": text}}

        async def kept(body=body):
            return (await client.post(f"{PATH}/store", json=body)).status_code == 200

        await until(kept)

    async def summarized():
        response = await client.post(f"{PATH}/summarize", json={**tenant, "limit": 10}, timeout=120)
        assert response.status_code in {200, 503, 504}, response.text
        return response.json() if response.status_code == 200 else None

    first = await until(summarized)
    assert first["items_processed"] == 2
    assert first["summary"].strip()
    assert len(first["sources"]) == 2
    again = await summarized()
    assert (again["summary"], again["cached"]) == (first["summary"], True)

    async def accounted():
        response = await client.get("/internal/llm/usage", params=tenant)
        return (
            response.status_code == 200
            and response.json()["rows"]
            and response.json()["rows"][0]["calls"] == 1
        )

    assert await until(accounted)


async def test_a_document_is_uploaded_converted_and_found(client):
    """Through the real ingress, in the sandbox of a replica, and embedded by the real model."""
    tenant = {"agent_id": "agent:sofia", "microdao_id": "microdao:documents"}
    query = {"microdao_id": tenant["microdao_id"], "path": "збори/правила.pdf"}
    pages = ("Кворум зборів становить дві третини голосів.", "Ключі від майстерні в Ореста.")

    async def uploaded():
        answer = await client.put(
            f"{PATH}/documents",
            params=query,
            content=pdf(*pages) + b"\n% filler" * (1 << 20),  # larger than any JSON body may be
            headers={"Content-Type": "application/pdf"},
            timeout=120,
        )
        assert answer.status_code in {200, 503}, answer.text
        return answer.json() if answer.status_code == 200 else None

    assert (await until(uploaded))["pages"] == 2

    async def embedded():
        found = await client.get(f"{PATH}/documents", params={"microdao_id": tenant["microdao_id"]})
        return found.json()["items"][0]["waiting"] == 0

    await until(embedded)
    answer = await client.post(f"{PATH}/query", json={**tenant, "query": "у кого ключі?"})
    first = answer.json()["items"][0]
    assert (first["content"], first["meta"]["page"]) == (pages[1], 2)
    assert (await client.delete(f"{PATH}/documents", params=query)).status_code == 200


async def test_the_whole_graphs_health_names_the_embedder(client):
    async def embedder_ready():
        checks = (await client.get("/health")).json()["checks"]
        return checks if checks.get("memory.embedder", {}).get("state") == "ready" else None

    assert await until(embedder_ready)
