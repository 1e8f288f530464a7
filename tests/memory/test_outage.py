"""While PostgreSQL is unavailable: a retryable 503 within two seconds. No restart is needed."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import httpx

from backends.postgres.migrate import migrate
from launcher.postgres import PostgresServer
from tests.support.events import RecordedEvents
from tests.support.memory.application import SOFIA, Memory, eventually, memory_application
from tests.support.memory.hashing_embedder import HashingEmbedder
from tests.support.patience import stopwatch
from tests.support.stores.outage import frozen

BOUND_S = 2.0


async def refused_in_time(memory: Memory) -> None:
    calls = {
        "query": memory.post("/query", {**SOFIA, "query": "факт"}),
        "store": memory.post(
            "/store", {**SOFIA, "kind": "task", "content": {"text": "факт"}, "wait_indexed_s": 30}
        ),
        "items": memory.client.get("/items", params=SOFIA),
        "delete": memory.client.delete("/items/mem-1", params=SOFIA),
        "summarize": memory.post("/summarize", SOFIA),
        "stats": memory.client.get("/stats", params=SOFIA),
        "export": memory.client.get("/export", params=SOFIA),
    }
    for name, response in zip(
        calls,
        await asyncio.gather(*(timed(name, call) for name, call in calls.items())),
        strict=True,
    ):
        assert response.status_code == 503, f"{name}: {response.text}"
        assert response.json()["error"]["retryable"] is True, name


async def timed(name: str, call: Awaitable[httpx.Response]) -> httpx.Response:
    async with stopwatch() as watch:
        response = await call
        assert watch.seconds < BOUND_S, name
    return response


async def test_postgresql_stops_and_returns(
    server_folder: Path, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
):
    server = PostgresServer(server_folder / "away", durable=False)
    await server.start()
    try:
        await migrate(server.urls.owner)
        async with memory_application(server.urls.service, tmp_path, embedder, events) as memory:
            await memory.store("Факт до перерви")
            await server.stop()
            for _ in range(2):
                await refused_in_time(memory)
            embedder.delay_s = 30  # a slow embedder must not delay the refusal
            await refused_in_time(memory)
            embedder.delay_s = 0
            await server.start()
            assert (await eventually(lambda: stored(memory)))["id"]
            with frozen(server):
                for _ in range(2):
                    await refused_in_time(memory)

            async def answers() -> bool:
                return (await memory.post("/query", {**SOFIA, "query": "факт"})).status_code == 200

            await eventually(answers)
            assert "Факт до перерви" in await memory.contents("факт до перерви")
            assert (await memory.store("Факт після перерви"))["indexed"] is True
    finally:
        await server.stop()


async def test_started_before_postgresql(
    server_folder: Path, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
):
    server = PostgresServer(server_folder / "late", durable=False)
    await server.start()
    await migrate(server.urls.owner)
    await server.stop()
    async with memory_application(server.urls.service, tmp_path, embedder, events) as memory:
        await refused_in_time(memory)
        await server.start()
        try:
            assert (await eventually(lambda: stored(memory)))["id"]
        finally:
            await server.stop()


async def stored(memory: Memory) -> dict[str, object] | None:
    response = await memory.post("/store", {**SOFIA, "kind": "task", "content": {"text": "факт"}})
    return response.json() if response.status_code == 200 else None
