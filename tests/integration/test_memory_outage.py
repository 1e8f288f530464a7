"""PostgreSQL away: 503 that says retry, within two seconds; service again when it is back, without a restart."""

import asyncio
import time
from pathlib import Path

from backends.migrate import migrate
from launcher.postgres import PostgresServer
from tests.support.events import RecordedEvents
from tests.support.hashing_embedder import HashingEmbedder
from tests.support.memory import SOFIA, Memory, eventually, memory_application

BOUND_S = 2.5  # two seconds, and what a busy machine adds


async def refused_in_time(memory: Memory) -> None:
    calls = {
        "query": memory.post("/query", {**SOFIA, "query": "факт"}),
        "store": memory.post("/store", {**SOFIA, "kind": "task", "content": {"text": "факт"}, "wait_indexed_s": 30}),
        "items": memory.client.get("/items", params=SOFIA),
        "delete": memory.client.delete("/items/mem-1", params=SOFIA),
        "summarize": memory.post("/summarize", SOFIA),
        "export": memory.client.get("/export", params=SOFIA),
    }
    begin = time.monotonic()
    for name, response in zip(calls, await asyncio.gather(*calls.values()), strict=True):
        assert response.status_code == 503, f"{name}: {response.text}"
        assert response.json()["error"]["retryable"] is True, name
    assert time.monotonic() - begin < BOUND_S


async def test_away_and_back(tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents):
    server = PostgresServer(tmp_path / "data", durable=False)
    await server.start()
    try:
        await migrate(server.urls.owner)
        async with memory_application(server.urls.service, tmp_path, embedder, events) as memory:
            await memory.store("Факт до перерви")
            await server.stop()
            for _ in range(2):
                await refused_in_time(memory)
            embedder.delay_s = 30  # an embedder that takes its time must not delay the refusal
            await refused_in_time(memory)
            embedder.delay_s = 0
            await server.start()

            async def answers() -> bool:
                return (await memory.post("/query", {**SOFIA, "query": "факт"})).status_code == 200

            await eventually(answers, 10)
            assert await memory.contents("факт") == ["Факт до перерви"]
            assert (await memory.store("Факт після перерви", wait=15))["indexed"] is True
    finally:
        await server.stop()


async def test_started_before_postgresql(tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents):
    server = PostgresServer(tmp_path / "data", durable=False)
    await server.start()
    await migrate(server.urls.owner)
    await server.stop()
    async with memory_application(server.urls.service, tmp_path, embedder, events) as memory:
        await refused_in_time(memory)
        await server.start()
        try:
            assert (await eventually(lambda: stored(memory), 15))["id"]
        finally:
            await server.stop()


async def stored(memory: Memory) -> dict[str, object] | None:
    response = await memory.post("/store", {**SOFIA, "kind": "task", "content": {"text": "факт"}})
    return response.json() if response.status_code == 200 else None
