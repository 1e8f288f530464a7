"""The application `tools`: the ingress deployment `Toolcore`, and `PythonToolRunner`, which it calls through a handle.

Serve inspects `build`'s annotations, so this module must not postpone them (`from __future__ import annotations`).
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from backends.nats.link import NatsLink
from backends.nats.publisher import NatsPublisher, NatsToolUsage
from backends.postgres.pool import Database, PoolLimits
from backends.tools.ledger import LedgerLimits, PostgresToolLedger
from backends.tools.registry import PostgresToolStore
from configs.environment import read_environment
from configs.stores import find_stores
from configs.tools import ConfiguredSecrets, NatsSettings, ToolsSettings
from configs.yaml_files import load_yaml
from contracts.errors import ConfigurationError, InvalidRequest
from contracts.health import Health
from contracts.tools.api import MAX_TIMEOUT_S, ToolExecutor
from deployments.graph.replica import access_control, open_event_log
from deployments.tools.metrics import ToolMetrics
from deployments.tools.python_runner import DEPLOYMENT as RUNNER
from deployments.tools.python_runner import (
    PythonRunnerArgs,
    PythonToolClient,
    python_tool_runner,
    runner_config,
)
from executors.http.executor import HttpToolExecutor
from executors.mcp.executor import McpToolExecutor
from executors.mcp.source import McpSource
from interfaces.http.base.ingress import Ingress
from interfaces.http.tools import ToolRoutes, is_admin_route, tools_router
from interfaces.mcp.server import ToolMcpServer
from interfaces.nats.tools.calls import NatsLimits, ToolNats
from interfaces.tools.answers import answer_handle
from services.health.dependencies import Dependency, HealthMonitor
from services.tools.application import Toolcore, ToolcoreConfiguration, ToolcorePorts
from services.tools.policy import Policy
from services.tools.registry import check_definition
from services.tools.resolution import Resolver

APPLICATION = "tools"
DEPLOYMENT = "Toolcore"
SETTINGS_FILE = "tools.yaml"


class ToolsArgs(BaseModel):
    """`args` of the application.

    `max_concurrent` bounds the requests in work per replica; more are answered 503 at once. `python` bounds the runner.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_concurrent: Annotated[int, Field(ge=1)] = 200
    python: PythonRunnerArgs = PythonRunnerArgs()


class ToolcoreReplica:
    """Wires Toolcore's ports to their adapters in one replica."""

    async def __init__(self, args: ToolsArgs, runner: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits constructors
        self._args = args
        self._environment = read_environment()
        self._events = open_event_log(self._environment, APPLICATION, [ToolMetrics()])
        stores = find_stores(self._environment)
        self._nats_url = stores.nats_url
        self._database = Database(
            stores.database_url, events=self._events, limits=PoolLimits(min_size=1, max_size=8)
        )
        await self._database.open()
        self._usage_link = (
            NatsLink(stores.nats_url, self._events, name="toolcore-usage")
            if stores.nats_url
            else None
        )
        self._publisher = NatsPublisher(self._usage_link, self._events)
        self._ledger = PostgresToolLedger(self._database)
        self._store = PostgresToolStore(self._database, events=self._events)
        self._toolcore = Toolcore(
            ToolcorePorts(self._store, self._ledger, NatsToolUsage(self._publisher), self._events)
        )
        self._python = PythonToolClient(runner)
        self._mcp = ToolMcpServer(self._toolcore.calls, self._toolcore.catalog)
        self._remote: dict[str, ToolExecutor] = {}
        self._nats: ToolNats | None = None
        self._nats_link: NatsLink | None = None
        self._monitor = HealthMonitor({})
        self._closing: set[asyncio.Task[None]] = set()
        await self._start()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes `tools.yaml`: its tools, rules, bounds, secrets and sources; calls under way end with what they began with."""
        settings = ToolsSettings.model_validate(user_config)
        limits = LedgerLimits(
            keep_results_s=settings.ledger.keep_results_s,
            keep_calls_days=settings.ledger.keep_calls_days,
            approval_valid_s=settings.policy.approval_valid_s,
        )
        self._ledger.reconfigure(limits)
        self._toolcore.registry.interval_s = settings.refresh_s
        replaced, configuration = self._remote, self._configuration(settings)
        await self._toolcore.configure(configuration)
        if replaced:
            self._close_later(replaced)
        if self._nats is None and settings.nats.enabled:
            self._listen(settings.nats)
            await self._watch()

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        toolcore = self._toolcore
        routes = ToolRoutes(
            toolcore.calls, toolcore.catalog, toolcore.admin, toolcore.audit, self._health
        )
        return Ingress(
            tools_router(routes, self._mcp),
            access_control(self._environment),
            self._events,
            max_concurrent=self._args.max_concurrent,
            is_admin=is_admin_route,
            on_shutdown=self._close,
        )

    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """For handles: the body of `POST /call` in and out."""
        return await answer_handle(self._toolcore.calls(), request, f"handle-{uuid4().hex}")

    async def _start(self) -> None:
        self._publisher.start()
        if self._usage_link is not None:
            self._usage_link.start()
        await self._mcp.start()
        await self._toolcore.start()
        await self._watch()

    def _configuration(self, settings: ToolsSettings) -> ToolcoreConfiguration:
        ingress = self._environment.ingress_url
        secrets = ConfiguredSecrets(settings.secrets, self._environment.secret, ingress)
        ceiling = settings.ceiling(ingress)
        mcp = McpToolExecutor(settings.sources, secrets, self._events, ceiling=ceiling)
        self._remote = {
            "http": HttpToolExecutor(secrets, self._events, ceiling=ceiling),
            "mcp": mcp,
        }
        return ToolcoreConfiguration(
            definitions=[settings.resolve(definition, ingress) for definition in settings.tools],
            executors={**self._remote, "python": self._python},
            policy=Policy(settings.policy, settings.bounds),
            resolve=_resolver(settings, ingress),
            sources={
                name: McpSource(name, source, mcp, check_definition, self._events)
                for name, source in settings.sources.items()
            },
        )

    def _listen(self, settings: NatsSettings) -> None:
        """Takes calls over NATS; its bounds are those of the first configuration until the replica is replaced."""
        if self._nats_url is None:
            return
        limits = NatsLimits(settings.max_in_flight, settings.max_waiting, settings.max_deliveries)
        self._nats = ToolNats(self._toolcore.calls, self._events, limits)
        self._nats_link = NatsLink(
            self._nats_url, self._events, name="toolcore", on_connect=self._nats.on_connect
        )
        self._nats_link.start()

    async def _watch(self) -> None:
        dependencies = {
            "database": Dependency(self._database.ping),
            "registry": Dependency(self._toolcore.ready),
            "python": Dependency(self._python.ping, required=False),
        }
        if self._nats_link is not None:
            dependencies["nats"] = Dependency(self._nats_link.probe, required=False)
        await self._monitor.close()
        self._monitor = HealthMonitor(dependencies)
        self._monitor.start()

    def _health(self) -> Health:
        return self._monitor.health()  # replaced when the first configuration comes

    def _close_later(self, executors: Mapping[str, ToolExecutor]) -> None:
        task = asyncio.create_task(_close_after(executors, MAX_TIMEOUT_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self) -> None:
        await self._monitor.close()
        if self._nats is not None and self._nats_link is not None:
            await self._nats.close()
            await self._nats_link.close()
        await self._mcp.close()
        await self._toolcore.close()
        await self._publisher.close()
        if self._usage_link is not None:
            await self._usage_link.close()
        for executor in self._remote.values():
            await executor.close()
        await self._database.close()
        await asyncio.to_thread(self._events.close)


async def _close_after(executors: Mapping[str, ToolExecutor], seconds: float) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(seconds)
    for executor in executors.values():
        await executor.close()


def build(args: ToolsArgs) -> Application:
    """Returns the application's graph.

    Raises:
        ConfigurationError: `tools.yaml` is wrong, or no PostgreSQL is known.
    """
    find_stores(read_environment())
    live = live_config({})
    ingress = serve.deployment(
        serve.ingress()(ToolcoreReplica), name=DEPLOYMENT, user_config=live[DEPLOYMENT]
    )
    return ingress.bind(args, python_tool_runner(args.python, live[RUNNER]))


def live_config(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns each deployment's `user_config` from the files as they are now, for a reload without restarts.

    Raises:
        ConfigurationError: `tools.yaml` is wrong.
    """
    ToolsArgs.model_validate(args)
    environment = read_environment()
    settings = load_yaml(environment.config_dir / SETTINGS_FILE, ToolsSettings)
    _check_tools(settings, environment.ingress_url)
    return {DEPLOYMENT: settings.model_dump(mode="json"), RUNNER: runner_config(settings)}


def _check_tools(settings: ToolsSettings, ingress: str) -> None:
    """Refuses at start what no call could ever use."""
    resolve = _resolver(settings, ingress)
    for tool in settings.tools:
        try:
            check_definition(resolve(tool))
        except InvalidRequest as error:
            raise ConfigurationError(f"{SETTINGS_FILE}: tools.{tool.id}: {error.message}") from None
    for name in settings.sources:
        problem = settings.source_problem(name, ingress)
        if problem:
            raise ConfigurationError(f"{SETTINGS_FILE}: sources.{name}.secrets: {problem}")


def _resolver(settings: ToolsSettings, ingress: str) -> Resolver:
    return Resolver(
        lambda definition: settings.resolve(definition, ingress),
        lambda definition: settings.secret_problem(definition, ingress),
        settings.python_packages,
        list(settings.sources),
    )
