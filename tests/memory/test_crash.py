"""500 stores while replica, embedder and PostgreSQL are killed: each is found exactly once."""

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from backends.postgres.migrate import migrate
from launcher.ports import free_ports
from launcher.postgres import PostgresServer
from tests.support.memory.application import SOFIA

STORES = 500
CALLERS = 8


class Process:
    """A child process that can be killed and restarted at the same address."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.memory.process", *self._arguments
        )

    async def kill(self) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()

    async def restart(self) -> None:
        await self.kill()
        await self.start()


@pytest.fixture
async def server(server_folder: Path) -> AsyncIterator[PostgresServer]:
    # Durable: acknowledged stores must survive a crash.
    async with PostgresServer(server_folder, durable=True) as started:
        await migrate(started.urls.owner)
        yield started


@pytest.fixture
async def parts(
    server: PostgresServer, tmp_path: Path
) -> AsyncIterator[tuple[Process, Process, str]]:
    replica_port, embedder_port = free_ports(2)
    embedder = Process("--embedder", "--port", str(embedder_port))
    replica = Process(
        "--port", str(replica_port), "--embedder-port", str(embedder_port),
        "--database-url", server.urls.service, "--data-dir", str(tmp_path),
    )  # fmt: skip
    await embedder.start()
    await replica.start()
    yield replica, embedder, f"http://127.0.0.1:{replica_port}"
    await replica.kill()
    await embedder.kill()


def receipt(number: int) -> str:
    return f"Квитанція {hashlib.sha256(str(number).encode()).hexdigest()[:16]}"


async def store_until_acknowledged(
    client: httpx.AsyncClient, number: int, acknowledged: dict[int, str]
) -> None:
    """Stores as a careful caller does: with the same key until there is an answer."""
    body = {
        **SOFIA,
        "kind": "conversation",
        "content": {"text": receipt(number)},
        "meta": {"n": number},
    }
    while number not in acknowledged:
        with contextlib.suppress(httpx.TransportError):
            response = await client.post(
                "/store", json=body, headers={"Idempotency-Key": f"key-{number}"}
            )
            if response.status_code == 200:
                acknowledged[number] = response.json()["id"]
                return
            assert response.status_code in {503, 504}, response.text
            assert response.json()["error"]["retryable"] is True
        await asyncio.sleep(0.1)


async def kill_in_turn(
    server: PostgresServer, replica: Process, embedder: Process, acknowledged: dict[int, str]
) -> None:
    for threshold, kill in (
        (80, "replica"),
        (180, "embedder"),
        (280, "postgres"),
        (380, "replica"),
    ):
        while len(acknowledged) < threshold:
            await asyncio.sleep(0.02)
        if kill == "postgres":
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            await server.wait()
            await server.start()
        else:
            await (replica if kill == "replica" else embedder).restart()


async def listed(client: httpx.AsyncClient) -> list[dict[str, object]]:
    items: list[dict[str, object]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (
            (await client.get("/items", params={**SOFIA, "limit": 100, **cursor}))
            .raise_for_status()
            .json()
        )
        items += page["items"]
        if "next_cursor" not in page:
            return items
        cursor = {"cursor": page["next_cursor"]}


@pytest.mark.timeout(360)
async def test_nothing_acknowledged_is_lost_or_doubled(
    server: PostgresServer, parts: tuple[Process, Process, str]
):
    replica, embedder, url = parts
    acknowledged: dict[int, str] = {}
    numbers = iter(range(STORES))

    async def caller() -> None:
        for number in numbers:
            await store_until_acknowledged(client, number, acknowledged)

    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        async with asyncio.timeout(300):
            await asyncio.gather(
                kill_in_turn(server, replica, embedder, acknowledged),
                *(caller() for _ in range(CALLERS)),
            )
            items = await listed(client)
            assert sorted(item["meta"]["n"] for item in items) == list(range(STORES))
            assert {item["meta"]["n"]: item["id"] for item in items} == acknowledged
            await every_chunk_is_embedded_once(server)
        for number in (0, 81, 181, 281, 381, 499):
            answer = (
                (await client.post("/query", json={**SOFIA, "query": receipt(number), "limit": 3}))
                .raise_for_status()
                .json()
            )
            assert "degraded" not in answer
            assert answer["items"][0]["id"] == acknowledged[number]


async def every_chunk_is_embedded_once(server: PostgresServer) -> None:
    import psycopg  # noqa: PLC0415

    query = """
        SELECT count(*), count(DISTINCT id), count(embedding), (SELECT count(*) FROM memory_queue)
        FROM agent_memories
    """
    while True:
        async with await psycopg.AsyncConnection.connect(server.urls.superuser) as connection:
            rows, ids, embedded, waiting = await (await connection.execute(query)).fetchone()
        assert rows == ids == STORES
        if embedded == STORES and waiting == 0:
            return
        await asyncio.sleep(0.2)
