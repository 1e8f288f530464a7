"""The memory application in this process: real routes and PostgreSQL, an embedder without model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from configs.memory import MemorySettings
from contracts.events import EventLog
from contracts.health import Health
from contracts.llm.embeddings import Embedder
from contracts.llm.reranking import Reranker
from deployments.graph.resources import WingEnvironment
from deployments.memory.wiring import MemoryRuntime
from interfaces.http.base.access import AccessControl
from interfaces.http.base.ingress import Ingress
from interfaces.http.memory import is_admin, memory_router
from tests.support.access import access_control, fixed_access
from tests.support.uvicorn_server import JSON

SOFIA = {"agent_id": "agent:sofia", "microdao_id": "microdao:7"}
BORYS = {"agent_id": "agent:borys", "microdao_id": "microdao:7"}
STRANGER = {"agent_id": "agent:sofia", "microdao_id": "microdao:8"}


class Memory:
    """A client of the application, with shortcuts."""

    def __init__(self, client: httpx.AsyncClient, runtime: MemoryRuntime, data_dir: Path) -> None:
        self.client = client
        self.runtime = runtime
        self.data_dir = data_dir

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **options)

    async def store(
        self, text: str, tenant: dict[str, str] = SOFIA, *, wait: float = 30.0, **fields: Any
    ) -> dict[str, Any]:
        body = {
            **tenant,
            "kind": "conversation",
            "content": {"text": text},
            "wait_indexed_s": wait,
            **fields,
        }
        return succeeded(await self.post("/store", body))

    async def query(
        self, text: str, tenant: dict[str, str] = SOFIA, **fields: Any
    ) -> dict[str, Any]:
        return succeeded(await self.post("/query", {**tenant, "query": text, **fields}))

    async def contents(self, text: str, tenant: dict[str, str] = SOFIA, **fields: Any) -> list[str]:
        return [item["content"] for item in (await self.query(text, tenant, **fields))["items"]]


def succeeded(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def ingress(
    runtime: MemoryRuntime, events: EventLog, access: AccessControl | None = None
) -> Ingress:
    return Ingress(
        memory_router(lambda: runtime.cases, lambda: Health(status="ready"), runtime.mcp),
        access or access_control(),
        events,
        max_concurrent=500,
        is_admin=is_admin,
    )


@asynccontextmanager
async def memory_application(
    database_url: str,
    data_dir: Path,
    embedder: Embedder,
    events: EventLog,
    *,
    settings: MemorySettings | None = None,
    ingress_url: str = "http://127.0.0.1:9",
    access: AccessControl | None = None,
    quotas: Mapping[str, Any] | None = None,
    reranker: Reranker | None = None,
) -> AsyncIterator[Memory]:
    """Opens the application, by default without periodic runs over the knowledge base."""
    settings = settings or MemorySettings.model_validate({"knowledge_base": {"interval_s": 0}})
    runtime = MemoryRuntime(
        settings,
        WingEnvironment(
            database_url, data_dir, ingress_url, fixed_access(settings={"quotas": quotas or {}})
        ),
        embedder,
        events,
        reranker,
    )
    await runtime.open()
    transport = httpx.ASGITransport(ingress(runtime, events, access))
    try:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=JSON, timeout=60
        ) as client:
            yield Memory(client, runtime, data_dir)
    finally:
        await runtime.close()


async def eventually(condition: Any, seconds: float = 60.0) -> Any:
    """Returns the first truthy result of the async `condition`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = await condition()
        if found:
            return found
        assert asyncio.get_running_loop().time() < deadline, "did not happen in time"
        await asyncio.sleep(0.05)
