"""A whole Toolcore over real stores, without Serve, with executors of the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import httpx

from backends.postgres.pool import Database, PoolLimits
from backends.tools.ledger import LedgerLimits, PostgresToolLedger
from backends.tools.registry import PostgresToolStore
from configs.tools import ToolsSettings
from contracts.health import Health
from contracts.tools.api import Execution, Outcome, ToolCallRequest, ToolDefinition
from interfaces.http.base.ingress import Ingress
from interfaces.http.tools import TOOL_ERRORS, ToolRoutes, is_admin_route, tools_router
from services.tools.application import Toolcore, ToolcoreConfiguration
from services.tools.policy import Policy
from services.tools.resolution import DefinitionResolver
from tests.support.access import access_control
from tests.support.events import RecordedEvents
from tests.support.uvicorn_server import JSON

PREFIX = "/internal/tools"
INGRESS = "http://127.0.0.1:1"
AGENT = {"agent_id": "agent:sofia", "microdao_id": "microdao:7"}


def tool(tool_id="test.echo", **fields):
    """A definition with defaults for the fields that a test does not name."""
    return {
        "id": tool_id,
        "name": tool_id,
        "input_schema": {"type": "object"},
        "executor": "http",
        "target": "http://127.0.0.1:9/x",
        "effect": "read",
        "timeout_s": 5,
        **fields,
    }


@dataclass
class Scripted:
    """An executor that answers what `script` returns and keeps what it was given."""

    script: object = None
    seen: list[Execution] = field(default_factory=list)

    async def execute(self, execution):
        self.seen.append(execution)
        answer = (
            self.script(execution)
            if self.script
            else Outcome(ok=True, result={"args": execution.args})
        )
        if asyncio.iscoroutine(answer):
            answer = await answer
        return answer if isinstance(answer, Outcome) else Outcome(ok=True, result=answer)

    async def close(self):
        return None


@dataclass
class UsageEvents:
    """Implements Publisher in memory."""

    published: list = field(default_factory=list)

    def publish(self, event):
        self.published.append(event)


@dataclass
class Replica:
    """One Toolcore and its stores."""

    toolcore: Toolcore
    executor: Scripted
    usage: UsageEvents
    events: RecordedEvents
    ledger: PostgresToolLedger
    store: PostgresToolStore

    async def call(self, tool_id="test.echo", args=None, *, call_id=None, via="http", **fields):
        request = ToolCallRequest(
            tool_id=tool_id,
            args={} if args is None else args,
            call_id=call_id,
            **{**AGENT, **fields},
        )
        return await self.toolcore.calls().call(request, via=via, request_id="req-1")


def settings(*tools, **fields):
    return ToolsSettings.model_validate({"tools": list(tools), **fields})


def configuration(given, executors, ingress=INGRESS, sources=None):
    return ToolcoreConfiguration(
        definitions=[given.resolve(definition, ingress) for definition in given.tools],
        executors=executors,
        policy=Policy(given.policy, given.bounds),
        resolve=DefinitionResolver(
            lambda definition: given.resolve(definition, ingress),
            lambda definition: given.secret_problem(definition, ingress),
            given.python_packages,
            list(given.sources),
        ),
        sources=sources or {},
    )


@contextlib.asynccontextmanager
async def replica(
    database_url,
    *tools,
    script=None,
    executors=None,
    limits=None,
    refresh_s=0.2,
    pool=8,
    sources=None,
    note=None,
    outside=None,
    **fields,
):
    """Yields a started Toolcore on this database with these tools."""
    events, usage, scripted = RecordedEvents(), UsageEvents(), Scripted(script)
    database = Database(database_url, events=events, limits=PoolLimits(max_size=pool))
    await database.open()
    ledger = PostgresToolLedger(database, limits or LedgerLimits())
    store = PostgresToolStore(database, events=events)
    executors = executors or {"http": scripted, "python": scripted, "mcp": scripted}
    toolcore = Toolcore(
        store, ledger, usage, events, outside=outside, refresh_s=refresh_s, note=note
    )
    await toolcore.start()
    await toolcore.configure(
        configuration(
            settings(*tools, **fields), executors, sources=sources(events) if sources else {}
        )
    )
    try:
        yield Replica(toolcore, scripted, usage, events, ledger, store)
    finally:
        await toolcore.close()
        await database.close()


def asgi(
    toolcore,
    events,
    *,
    internal=None,
    admin=None,
    max_concurrent=100,
    mcp=None,
    on_shutdown=None,
    access=None,
    **known,
):
    """The application's ingress as a replica serves it; `access` in place of the secrets."""
    routes = ToolRoutes(toolcore, lambda: Health(status="ready"))
    return Ingress(
        tools_router(routes, mcp),
        access or access_control(internal, admin, **known),
        events,
        max_concurrent=max_concurrent,
        is_admin=is_admin_route,
        error_shapes=TOOL_ERRORS,
        on_shutdown=on_shutdown,
    )


@contextlib.asynccontextmanager
async def client(toolcore, events, **access):
    """Yields an HTTP client of the application below its prefix."""
    transport = httpx.ASGITransport(_prefixed(asgi(toolcore, events, **access)))
    async with httpx.AsyncClient(
        transport=transport, base_url=f"http://localhost{PREFIX}", headers=JSON
    ) as http:
        yield http


def _prefixed(app):
    async def prefixed(scope, receive, send):
        await app(
            {**scope, "root_path": PREFIX} if scope["type"] == "http" else scope, receive, send
        )

    return prefixed


def definition(**fields):
    return ToolDefinition.model_validate(tool(**fields))
