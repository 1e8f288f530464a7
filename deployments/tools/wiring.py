"""Toolcore over its adapters, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fastapi import APIRouter

from backends.nats.link import NatsLink
from backends.nats.publisher import NatsEvents, NatsPublisher
from backends.postgres.pool import Database, PoolLimits
from backends.tools.ledger import LedgerLimits, PostgresToolLedger
from backends.tools.registry import PostgresToolStore
from configs.endpoints import same_origin
from configs.tools import ConfiguredSecrets, NatsSettings, ToolsSettings
from contracts.access.principals import acting
from contracts.errors import ConfigurationError, InvalidRequest
from contracts.events import EventLog
from contracts.health import Health
from contracts.identity import Tenant
from contracts.tools.api import MAX_TIMEOUT_S, ToolExecutor
from deployments.graph.resources import Reloadable, Resources, WingEnvironment
from executors.http.executor import HttpToolExecutor
from executors.mcp.executor import McpToolExecutor
from executors.mcp.source import McpSource
from interfaces.http.tools import ToolRoutes, tools_router
from interfaces.mcp.tools import ToolMcpServer
from interfaces.nats.senders import Senders
from interfaces.nats.tools import ToolNats
from services.health.dependencies import Dependency, HealthMonitor
from services.tools.application import Toolcore, ToolcoreConfiguration
from services.tools.calls import ToolCalls
from services.tools.policy import Policy
from services.tools.registry import check_definition
from services.tools.resolution import DefinitionResolver


class PythonExecutor(ToolExecutor, Protocol):
    """The executor of Python tools, with its health."""

    async def ping(self) -> None:
        """Raises Unavailable while it cannot run a tool."""


class ToolsRuntime:
    """The parts of one process of Toolcore. Construct it on the event loop, then `open` it.

    The first `reconfigure` makes it answer; no request comes before.
    """

    def __init__(
        self, environment: WingEnvironment, python: PythonExecutor, events: EventLog
    ) -> None:
        """The caller opens and closes `python` and `events`."""
        self._environment = environment
        self._python = python
        self._events = events
        self._resources = Resources()
        self._database = Database(
            environment.database_url, events=events, limits=PoolLimits(min_size=1, max_size=8)
        )
        self._publisher = NatsPublisher(environment.nats_url, events, name="toolcore-usage")
        self._ledger = PostgresToolLedger(self._database)
        store = PostgresToolStore(self._database, events=events)
        self._policy_service = environment.policy_service(events)
        self._toolcore = Toolcore(
            store,
            self._ledger,
            NatsEvents(self._publisher),
            events,
            note=None if (audit := environment.access.audit) is None else audit.note,
            outside=self._policy_service,
        )
        self._mcp = ToolMcpServer(self._toolcore)
        self._executors = Reloadable(MAX_TIMEOUT_S)
        self._link: NatsLink | None = None
        self._monitor = HealthMonitor({}, events)

    async def open(self) -> None:
        """Opens the pool (also while PostgreSQL is away) and starts the background work."""
        async with Resources() as resources:
            await resources.closing(self._database).open()
            resources.closing(self._executors)
            resources.closing(self._policy_service)
            resources.closing(self._publisher).start()
            await resources.closing(self._toolcore).start()
            await resources.closing(self._mcp).start()
            resources.push_async_callback(self._stop_watching)
            await self._watch()
            self._resources = resources.pop_all()

    async def close(self) -> None:
        """Takes no more calls, writes the ends of those under way, then closes the rest."""
        await self._resources.aclose()

    async def reconfigure(self, settings: ToolsSettings) -> None:
        """Takes `tools.yaml`; calls under way keep the old tools, rules and secrets."""
        self._ledger.reconfigure(
            LedgerLimits(
                keep_results_s=settings.ledger.keep_results_s,
                keep_calls_days=settings.ledger.keep_calls_days,
                keep_versions_days=settings.ledger.keep_versions_days,
                approval_valid_s=settings.policy.approval_valid_s,
            )
        )
        self._toolcore.registry.interval_s = settings.refresh_s
        ingress = self._environment.ingress_url
        secrets = ConfiguredSecrets(settings.secrets, self._environment.lookup, ingress)
        ceiling = settings.ceiling(ingress)
        async with Resources() as opened:  # closed if the rest cannot be built
            http = opened.closing(
                HttpToolExecutor(
                    secrets, self._events, ceiling=ceiling, own_headers=self._delegated
                )
            )
            mcp = opened.closing(
                McpToolExecutor(settings.sources, secrets, self._events, ceiling=ceiling)
            )
            configuration = ToolcoreConfiguration(
                definitions=[settings.resolve(tool, ingress) for tool in settings.tools],
                executors={"http": http, "mcp": mcp, "python": self._python},
                policy=Policy(settings.policy, settings.bounds),
                resolve=tool_resolver(settings, ingress),
                sources={
                    name: McpSource(name, source, mcp, check_definition, self._events)
                    for name, source in settings.sources.items()
                },
            )
            opened.pop_all()
        # Calls use the new executors from here on, even if `configure` fails later.
        self._executors.replace([http, mcp])
        await self._toolcore.configure(configuration)
        if self._link is None and self._environment.nats_url and settings.nats.enabled:
            self._listen(self._environment.nats_url, settings.nats)
            await self._watch()

    def router(self) -> APIRouter:
        """Returns the routes of the application."""
        return tools_router(ToolRoutes(self._toolcore, self._health), self._mcp)

    def calls(self) -> ToolCalls:
        """Returns the use case of calls, as it is configured now."""
        return self._toolcore.calls()

    def _delegated(self, url: str, context: Mapping[str, Any]) -> Mapping[str, str]:
        if not same_origin(url, self._environment.ingress_url):
            return {}
        tenant = Tenant.model_validate(context)
        return self._environment.access.delegations.headers(acting().narrowed(tenant))

    def _listen(self, nats_url: str, settings: NatsSettings) -> None:
        """Takes calls over NATS; its bounds stay those of the first configuration."""
        senders = Senders(self._environment.access)
        calls = ToolNats(self._toolcore.calls, senders, self._events, settings)
        self._link = NatsLink(nats_url, self._events, name="toolcore", on_connect=calls.on_connect)
        self._resources.closing(self._link).start()
        self._resources.closing(calls)

    async def _watch(self) -> None:
        dependencies = {
            "database": Dependency(self._database.ping),
            "registry": Dependency(self._toolcore.ready),
            "python": Dependency(self._python.ping, required=False),
        }
        if self._link is not None:
            dependencies["nats"] = Dependency(self._link.probe, required=False)
        await self._monitor.close()
        self._monitor = HealthMonitor(dependencies, self._events)
        self._monitor.start()

    def _health(self) -> Health:
        return self._monitor.health()  # the first configuration replaces the monitor

    async def _stop_watching(self) -> None:
        await self._monitor.close()


def check_tools(settings: ToolsSettings, ingress_url: str, file: str) -> None:
    """Refuses at start the tools and sources that no call could use.

    Raises:
        ConfigurationError: names `file`, the tool or source, and what is wrong with it.
    """
    resolve = tool_resolver(settings, ingress_url)
    for tool in settings.tools:
        try:
            check_definition(resolve(tool))
        except InvalidRequest as error:
            raise ConfigurationError(f"{file}: tools.{tool.id}: {error.message}") from None
    for name in settings.sources:
        problem = settings.source_problem(name, ingress_url)
        if problem:
            raise ConfigurationError(f"{file}: sources.{name}.secrets: {problem}")


def tool_resolver(settings: ToolsSettings, ingress_url: str) -> DefinitionResolver:
    """Returns the resolver of definitions from `tools.yaml` and from administrators."""
    return DefinitionResolver(
        lambda definition: settings.resolve(definition, ingress_url),
        lambda definition: settings.secret_problem(definition, ingress_url),
        settings.python_packages,
        list(settings.sources),
    )
