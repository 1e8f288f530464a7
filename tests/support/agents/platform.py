"""Every application behind one real HTTP server, as the ingress shows them: what the agent runtime
speaks to.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from backends.http.agent_runtime import AgentRuntimeClient
from backends.postgres.pool import Database, PoolLimits
from backends.tools.ledger import LedgerLimits, PostgresToolLedger
from backends.tools.registry import PostgresToolStore
from configs.environment import REPOSITORY, read_environment
from configs.tools import ConfiguredSecrets, ToolsSettings
from configs.yaml_files import load_yaml
from contracts.access.principals import acting
from contracts.agents.blueprints import Blueprint
from contracts.identity import Tenant
from contracts.tools.api import Outcome
from deployments.agents.wiring import AgentRuntime, AgentsArgs
from deployments.graph.resources import WingEnvironment
from executors.http.executor import HttpToolExecutor
from interfaces.http.base.access import AccessControl
from interfaces.http.base.ingress import Ingress
from launcher.postgres import PostgresServer
from services.access.authentication import Authentication
from services.tools.application import Toolcore
from services.workspace.dispatching import DispatchLimits
from tests.conftest import TEMPLATE, copy_database
from tests.support.access import fixed_access
from tests.support.agents.scripted_model import ScriptedModel, Thought
from tests.support.events import RecordedEvents
from tests.support.llm.proxy import ingress_of, proxy_over
from tests.support.memory.application import ingress as memory_ingress
from tests.support.memory.application import memory_application
from tests.support.memory.hashing_embedder import HashingEmbedder
from tests.support.tools import toolcore as tool_support
from tests.support.uvicorn_server import JSON, served
from tests.support.workspace.application import workspace

PREFIXES = {
    "llm": "/internal/llm",
    "memory": "/internal/agent-memory",
    "tools": "/internal/tools",
    "agents": "/internal/agent-runtime",
    "workspace": "/internal/messaging",
}
OWN = "microdao:7"
OLENA, SOFIA = "user:olena", "agent:sofia"
_numbers = count(100)


def blueprint(**fields: Any) -> Blueprint:
    """A blueprint with defaults for the fields that a test does not name."""
    limits = {"seconds": 30, **fields.pop("limits", {})}
    memory = {"timeout_s": 5, **fields.pop("memory", {})}
    given = {
        "id": SOFIA,
        "name": "Софія",
        "model": "thinker",
        "instructions": "Ти — Софія.",
        "tools": ["projects.list", "followups.create"],
    }
    return Blueprint.model_validate({**given, **fields, "limits": limits, "memory": memory})


class Door:
    """One address for all applications: the longest prefix decides. What is in `away` cannot be
    reached.
    """

    def __init__(self) -> None:
        self.apps: dict[str, Any] = {}
        self.away: set[str] = set()
        self.requests: list[tuple[str, str]] = []

    async def __call__(self, scope, receive, send):
        name = next((name for name in self.apps if scope["path"].startswith(PREFIXES[name])), None)
        self.requests.append((scope["method"], scope["path"]))
        if name is None or name in self.away:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"no server is available"})
            return
        await self.apps[name]({**scope, "root_path": PREFIXES[name]}, receive, send)


@dataclass
class Platform:
    """A running platform and shortcuts for what tests do often."""

    url: str
    http: httpx.AsyncClient
    door: Door
    model: ScriptedModel
    events: RecordedEvents
    database_url: str
    embedder: HashingEmbedder
    nats_url: str | None = None
    blueprints: dict[str, Blueprint] = field(default_factory=dict)
    outcomes: dict[str, Any] = field(default_factory=dict)
    executed: list[Any] = field(default_factory=list)
    runtime: AgentRuntime | None = None
    microdao: str = OWN
    access: Authentication = field(default_factory=fixed_access)

    def fresh(self, *given: Blueprint) -> None:
        """Forgets what earlier tests did: another microDAO, nothing recorded, nothing away."""
        self.microdao = f"microdao:{next(_numbers)}"
        self.use(*(given or (blueprint(),)))
        self.model.mind = lambda body: Thought("Гаразд.")
        for kept in (
            self.model.bodies,
            self.executed,
            self.outcomes,
            self.door.requests,
            self.door.away,
        ):
            kept.clear()

    def use(self, *given: Blueprint) -> None:
        self.blueprints.clear()
        self.blueprints.update({one.id: one for one in given})

    async def post(self, path: str, body: Any, status: int | None = None, **options: Any) -> Any:
        answer = await self.http.post(path, json=body, **options)
        assert status is None or answer.status_code == status, answer.text
        return answer.json()

    async def channel(self, *members: str, microdao_id: str | None = None) -> str:
        body = {
            "name": "Канал",
            "microdao_id": microdao_id or self.microdao,
            "members": list(members or (OLENA, SOFIA)),
        }
        return (await self.post("/internal/messaging/channels", body, 201))["id"]

    async def say(self, channel: str, text: str, sender: str = OLENA) -> str:
        return (
            await self.post(
                f"/internal/messaging/channels/{channel}/messages",
                {"sender_id": sender, "text": text},
                201,
            )
        )["id"]

    async def messages(self, channel: str) -> list[dict[str, Any]]:
        """Oldest first."""
        answer = await self.http.get(
            f"/internal/messaging/channels/{channel}/messages", params={"limit": 200}
        )
        return answer.json()[::-1]

    async def replies(self, channel: str, agent: str = SOFIA) -> list[str]:
        return [
            message["body"]
            for message in await self.messages(channel)
            if message["sender_id"] == agent
        ]

    async def invoke(
        self,
        channel: str,
        message_id: str | None = None,
        *,
        agent: str = SOFIA,
        wait: str = "true",
        **payload: Any,
    ) -> Any:
        given = {
            "channel_id": channel,
            **({"message_id": message_id} if message_id else {}),
            **payload,
        }
        body = {"agent_id": agent, "entrypoint": "channel_message", "payload": given}
        answer = await self.http.post(
            "/internal/agent-runtime/invocations", json=body, params={"wait": wait}
        )
        return {**answer.json(), "http": answer.status_code}

    async def ask(self, channel: str, text: str, **payload: Any) -> Any:
        return await self.invoke(channel, await self.say(channel, text), **payload)

    async def run(self, run_id: str) -> dict[str, Any]:
        answer = await self.http.get(
            f"/internal/agent-runtime/runs/{run_id}", params={"microdao_id": self.microdao}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def project(self, name: str, microdao_id: str | None = None) -> None:
        await self.post(
            "/internal/messaging/projects",
            {"name": name, "microdao_id": microdao_id or self.microdao},
            201,
        )

    @contextlib.asynccontextmanager
    async def agents(self, **args: Any):
        """A replica of the agent runtime behind the platform's address."""
        settings = AgentsArgs(**{"claim_every_s": 0.2, "lease_s": 5, "patience_s": 2, **args})
        environment = WingEnvironment(
            self.database_url, Path(), self.url, self.access, nats_url=self.nats_url
        )
        runtime = AgentRuntime(settings, environment, lambda: self.blueprints, self.events)
        await runtime.open()
        before = self.door.apps.get("agents")
        self.door.apps["agents"] = Ingress(
            runtime.router(), AccessControl(self.access), self.events, max_concurrent=500
        )
        self.runtime = runtime
        try:
            yield runtime
        finally:
            if before is not None:
                self.door.apps["agents"] = before
            await runtime.close()


@contextlib.asynccontextmanager
async def platform(
    database_url: str,
    folder: Path,
    *,
    nats_url: str | None = None,
    embedder: Any = None,
    tools: tuple[dict[str, Any], ...] = (),
    agents: bool = True,
    dispatch: bool = False,
    prices: dict[str, Any] | None = None,
    access: Authentication | None = None,
    **args: Any,
):
    """Yields the platform. `tools` are further tools, executed in this process: `outcomes` has
    results by tool id. `prices` are those of `llm.yaml`. `access` knows the callers, by default
    everybody.
    """
    access = access or fixed_access()
    control = AccessControl(access)
    events, door, model = RecordedEvents(), Door(), ScriptedModel()
    embedder = embedder or HashingEmbedder()
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(door))
        await stack.enter_async_context(model.serving())
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, headers=JSON, timeout=90)
        )
        here = Platform(
            url, http, door, model, events, database_url, embedder, nats_url, access=access
        )
        thinker = {
            "thinker": {
                "provider": "backup",
                "name": "thinker",
                "timeouts": {"first_token_s": 30, "idle_s": 30, "total_s": 60},
            }
        }
        proxy, recorder = await stack.enter_async_context(
            proxy_over(model.base_url, prices=prices, **thinker)
        )
        door.apps["llm"] = ingress_of(proxy, recorder, max_concurrent=500, access=control)
        memory = await stack.enter_async_context(
            memory_application(database_url, folder, embedder, events, ingress_url=url)
        )
        door.apps["memory"] = memory_ingress(memory.runtime, events, control)
        door.apps["tools"] = await stack.enter_async_context(_tools(here, tools))
        invoker = AgentRuntimeClient(url, access.delegations.current) if dispatch else None
        limits = DispatchLimits(max_delay_s=0.2) if dispatch else None
        replica = await stack.enter_async_context(
            workspace(database_url, events, invoker=invoker, limits=limits, access=access)
        )
        door.apps["workspace"] = replica.app
        if invoker is not None:
            stack.push_async_callback(invoker.close)
        here.use(blueprint())
        if agents:
            await stack.enter_async_context(here.agents(**args))
        yield here


@contextlib.asynccontextmanager
async def shared_platform(server: PostgresServer, folder: Path, **options: Any):
    """Yields a platform on a database of its own, for a whole module; each of its tests begins with
    `fresh`.
    """
    name = f"platform_{next(_numbers)}"
    await copy_database(server, TEMPLATE, name)
    async with platform(server.urls_of(name).service, folder, **options) as here:
        yield here


@contextlib.asynccontextmanager
async def _tools(here: Platform, extra: tuple[dict[str, Any], ...]):
    """Toolcore with the shipped tools over HTTP, and `extra` ones that answer from `outcomes`."""

    async def outcome(execution):
        here.executed.append(execution)
        found = here.outcomes.get(execution.tool.id, {"done": True})
        found = found(execution) if callable(found) else found
        return await found if asyncio.iscoroutine(found) else found

    settings = load_yaml(REPOSITORY / "configs" / "tools.yaml", ToolsSettings)
    more = [tool_support.definition(tool_id=one.pop("id"), **one) for one in map(dict, extra)]
    settings = settings.model_copy(update={"tools": [*settings.tools, *more]})
    secrets = ConfiguredSecrets(settings.secrets, read_environment({}).secret, here.url)
    remote = HttpToolExecutor(
        secrets,
        here.events,
        own_headers=lambda _url, context: here.access.delegations.headers(
            acting().narrowed(Tenant.model_validate(context))
        ),
    )
    scripted = tool_support.Scripted(outcome)
    database = Database(here.database_url, events=here.events, limits=PoolLimits(max_size=8))
    await database.open()
    ledger = PostgresToolLedger(database, LedgerLimits())
    store = PostgresToolStore(database, events=here.events)
    toolcore = Toolcore(store, ledger, tool_support.UsageEvents(), here.events, refresh_s=5)
    await toolcore.start()
    await toolcore.configure(
        tool_support.configuration(
            settings, {"http": remote, "python": scripted, "mcp": scripted}, ingress=here.url
        )
    )
    try:
        yield tool_support.asgi(toolcore, here.events, access=AccessControl(here.access))
    finally:
        await toolcore.close()
        await remote.close()
        await database.close()


def extra_tool(tool_id: str, effect: str, **fields: Any) -> dict[str, Any]:
    """A tool for `platform(tools=…)`."""
    return {
        "id": tool_id,
        "executor": "python",
        "target": "toolbox.text:summary_stats",
        "effect": effect,
        **fields,
    }


def failure(kind: str, error: str = "сервіс відмовив") -> Outcome:
    return Outcome(ok=False, error_kind=kind, error=error)
