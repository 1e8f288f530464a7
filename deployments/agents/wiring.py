"""The agent runtime over its adapters, without Ray: for a replica and for a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from backends.agents.runs import PostgresRuns
from backends.http.client import presenting
from backends.http.llm import LLMProxyClient
from backends.http.memory import MemoryClient
from backends.http.messaging import open_messaging
from backends.http.tools import ToolsClient
from backends.nats.link import NatsLink
from backends.nats.publisher import NatsEvents, NatsPublisher
from backends.postgres.pool import Database, PoolLimits
from configs.endpoints import same_origin
from configs.messaging import MessagingSettings
from contracts.agents.blueprints import Blueprint
from contracts.events import EventLog
from deployments.graph.resources import Resources, WingEnvironment
from interfaces.http.agents import agents_router
from interfaces.nats.agents import AgentNats
from interfaces.nats.senders import Senders
from services.agents.announcements import RunAnnouncements
from services.agents.channel_tenants import ChannelTenants
from services.agents.delivery import Delivery
from services.agents.pipeline import Pipeline
from services.agents.run_attempts import RunAttempts
from services.agents.runs import AgentRuns, RunSettings
from services.agents.scope import PipelinePorts
from services.health.dependencies import Dependency, HealthMonitor


class AgentsArgs(RunSettings):
    """`args` of the application, beside the bounds of its runs.

    `max_concurrent` bounds the concurrent requests per replica; more are answered 503 at once.
    `messaging` says where channels are (by default the workspace of this graph). Calls to the LLM
    proxy, Toolcore and memory are retried for `patience_s` while those cannot be reached.
    Invocations over NATS that can never be served are kept for `keep_parked_days`.
    """

    max_concurrent: Annotated[int, Field(ge=1)] = 300
    patience_s: Annotated[float, Field(ge=0, le=300)] = 15.0
    database_connections: Annotated[int, Field(ge=1, le=64)] = 6
    keep_parked_days: Annotated[float, Field(ge=0.01, le=365)] = 14.0
    messaging: MessagingSettings = MessagingSettings()


class AgentRuntime:
    """The parts of one agent runtime process. Construct it on the event loop, then `open` it."""

    def __init__(
        self,
        args: AgentsArgs,
        environment: WingEnvironment,
        blueprints: Callable[[], Mapping[str, Blueprint]],
        events: EventLog,
    ) -> None:
        """The caller closes `events`. `blueprints` returns the current ones."""
        base, own = environment.ingress_url, environment.access.delegations.current
        self._resources = Resources()
        self._database = Database(
            environment.database_url,
            events=events,
            limits=PoolLimits(min_size=1, max_size=args.database_connections),
        )
        url, secret = args.messaging.place(base, environment.lookup)
        self._messaging = open_messaging(
            args.messaging.kind, url, own if same_origin(url, base) else presenting(secret)
        )
        self._model = LLMProxyClient(base, own, patience_s=args.patience_s)
        self._tools = ToolsClient(base, own, patience_s=args.patience_s)
        self._memory = MemoryClient(base, own, patience_s=min(args.patience_s, 5.0))
        self._publisher = NatsPublisher(environment.nats_url, events, name="agents-usage")
        self.store = PostgresRuns(self._database, events)
        announcements = RunAnnouncements(NatsEvents(self._publisher), events)
        attempts = RunAttempts(
            self.store,
            self._messaging,
            self._memory,
            announcements,
            Pipeline(PipelinePorts(self._messaging, self._memory, self._model, self._tools)),
            Delivery(self._messaging, patience_s=0.6 * args.lease_s),
            blueprints,
            environment.access.directory.claimed,
            lease_s=args.lease_s,
        )
        self._policy = environment.policy_service(events)
        channels = ChannelTenants(self._messaging, args.messaging.microdao_of)
        self.runs = AgentRuns(
            self.store,
            self._messaging,
            attempts,
            events,
            channels=channels,
            blueprints=blueprints,
            policy=self._policy,
            settings=args,
        )
        self._blueprints = blueprints
        keep_parked_s = args.keep_parked_days * 86_400.0
        self._nats = AgentNats(self.runs, Senders(environment.access), events, keep_parked_s)
        self._link = (
            NatsLink(environment.nats_url, events, name="agents", on_connect=self._nats.on_connect)
            if environment.nats_url
            else None
        )
        dependencies = {"database": Dependency(self._database.ping), "work": Dependency(self._work)}
        if self._link is not None:
            dependencies["nats"] = Dependency(self._link.probe, required=False)
        self._monitor = HealthMonitor(dependencies, events)

    async def open(self) -> None:
        """Opens the pool (also while PostgreSQL is away) and starts to work."""
        async with Resources() as resources:
            await resources.closing(self._database).open()
            for client in (
                self._messaging,
                self._model,
                self._tools,
                self._memory,
                self._policy,
            ):
                resources.closing(client)
            resources.closing(self._publisher).start()
            resources.closing(self.runs).start()
            if self._link is not None:
                resources.closing(self._link).start()
                resources.closing(self._nats)
            resources.closing(self._monitor).start()
            self._resources = resources.pop_all()

    async def close(self) -> None:
        """Takes no more runs, gives running ones a few seconds, and hands the rest over."""
        await self._resources.aclose()

    def router(self) -> APIRouter:
        """Returns the routes of the application."""
        return agents_router(self.runs, self.store, self._blueprints, self._monitor.health)

    async def _work(self) -> None:
        self.runs.check()
        self._nats.check()
