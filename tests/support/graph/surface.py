"""All applications with routes in one process, as their replicas serve them, without Ray."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from backends.access.audit import PostgresAudit
from backends.access.principals import PostgresPrincipals
from backends.postgres.pool import Database
from configs.engines.embedder import RemoteEmbedderSettings
from configs.environment import REPOSITORY, read_environment
from configs.llm.config import LLMSettings
from configs.memory import MemorySettings
from configs.tools import ToolsSettings
from configs.yaml_files import load_yaml
from contracts.health import Health
from contracts.llm.listings import EngineLoad
from deployments.agents.app import AgentRuntimeReplica
from deployments.agents.wiring import AgentRuntime, AgentsArgs
from deployments.graph.resources import Resources, WingEnvironment
from deployments.graph.root import RootReplica
from deployments.llm.app import LLMArgs, LLMReplica
from deployments.llm.wiring import LLMPorts, LLMRuntime
from deployments.memory.app import MemoryArgs, MemoryReplica
from deployments.memory.wiring import MemoryRuntime
from deployments.tools.app import ToolcoreReplica, ToolsArgs
from deployments.tools.wiring import ToolsRuntime
from deployments.workspace.app import WorkspaceReplica
from deployments.workspace.wiring import WorkspaceArgs, WorkspaceRuntime
from services.llm.limits.lease_book import LeaseBook
from tests.support.memory.hashing_embedder import HashingEmbedder

CONFIGS = REPOSITORY / "configs"
PREFIXES = {
    "llm": "/internal/llm",
    "memory": "/internal/agent-memory",
    "tools": "/internal/tools",
    "agents": "/internal/agent-runtime",
    "workspace": "/internal/messaging",
    "root": "",
}
EMBEDDER = {
    "type": "openai_compatible", "served_name": "hashing", "version": "hashing-1",
    "dimension": 384, "base_url": "http://127.0.0.1:9", "model": "hashing",
}  # fmt: skip


class Neighbours:
    """An engine, a Python executor and a limit authority in this process."""

    def __init__(self) -> None:
        self._book = LeaseBook("one", 0.0)

    async def awake(self, deadline: object) -> None:
        pass

    async def stats(self) -> EngineLoad:
        return EngineLoad(max_running=1, running=0, waiting=0)

    async def exchange(self, report: Any) -> Any:
        return self._book.exchange(report, 100.0, 1_000.0)

    async def standing(self, limits: Any) -> Any:
        return [self._book.standing(one.key, one.amount, 100.0, 1_000.0) for one in limits]

    async def ping(self) -> None:
        pass


def _replica(kind: Any, **parts: Any) -> Any:
    """Returns a replica of these parts: only Ray may call its constructor."""
    made = object.__new__(kind)
    made.__dict__.update(parts)
    return made


@contextlib.asynccontextmanager
async def surface(database_url: str, access: Any, events: Any, folder: Path, **settings: Any):
    """Yields an HTTP client for every route."""
    environment = read_environment({"DAARION_DATA_DIR": str(folder)})
    wing = WingEnvironment(database_url, folder, "http://127.0.0.1:9", access)
    shared = {"_access": access, "_environment": environment, "_events": events}
    shared["_resources"] = SimpleNamespace(aclose=None)
    memory_settings = load_yaml(CONFIGS / "memory.yaml", MemorySettings)
    llm = LLMRuntime(
        wing,
        LLMPorts(Neighbours(), HashingEmbedder(), Neighbours()),
        RemoteEmbedderSettings.model_validate(EMBEDDER),
        events,
    )
    memory = MemoryRuntime(memory_settings, wing, HashingEmbedder(), events)
    tools = ToolsRuntime(wing, Neighbours(), events)
    agents = AgentRuntime(AgentsArgs(), wing, lambda: settings.get("blueprints", {}), events)
    workspace = WorkspaceRuntime(WorkspaceArgs(invoke_agents=False), wing, events)
    database = Database(database_url, events=events)
    async with Resources() as resources:
        for part in (llm, memory, tools, agents, workspace, database):
            await resources.closing(part).open()
        await llm.reconfigure(load_yaml(CONFIGS / "llm.yaml", LLMSettings))
        await tools.reconfigure(load_yaml(CONFIGS / "tools.yaml", ToolsSettings))
        health = SimpleNamespace(health=lambda: Health(status="ready"))
        replicas = {
            "llm": _replica(LLMReplica, _runtime=llm, _args=LLMArgs(), **shared),
            "memory": _replica(
                MemoryReplica, _runtime=memory, _args=MemoryArgs(), _monitor=health, **shared
            ),
            "tools": _replica(ToolcoreReplica, _runtime=tools, _args=ToolsArgs(), **shared),
            "agents": _replica(AgentRuntimeReplica, _runtime=agents, _args=AgentsArgs(), **shared),
            "workspace": _replica(
                WorkspaceReplica, _runtime=workspace, _args=WorkspaceArgs(), **shared
            ),
            "root": _replica(
                RootReplica,
                _principals=PostgresPrincipals(database, events),
                _audit=PostgresAudit(database),
                _health=health,
                _prefixes={},
                **shared,
            ),
        }
        apps = {name: replica.__serve_build_asgi_app__() for name, replica in replicas.items()}
        async with httpx.AsyncClient(
            transport=_Transport(apps), base_url="http://localhost", timeout=60
        ) as client:
            yield client


class _Transport(httpx.AsyncBaseTransport):
    """Sends a request to the application whose prefix its path has."""

    def __init__(self, apps: Any) -> None:
        self._transports = {
            PREFIXES[name]: httpx.ASGITransport(app, root_path=PREFIXES[name])
            for name, app in apps.items()
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        prefix = max((one for one in self._transports if path.startswith(one)), key=len)
        return await self._transports[prefix].handle_async_request(request)
