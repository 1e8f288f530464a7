"""The workspace over its adapters, without Ray."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from backends.http.agent_runtime import AgentRuntimeClient
from backends.nats.publisher import NatsPublisher
from backends.postgres.erasing import TenantRows
from backends.postgres.pool import Database, PoolLimits
from backends.workspace.channels import PostgresChannels
from backends.workspace.events import PostgresChannelEvents
from backends.workspace.messages import PostgresMessages
from backends.workspace.notices import NatsMessageNotices
from backends.workspace.outbox import PostgresOutbox
from backends.workspace.projects import PostgresFollowUps, PostgresProjects
from contracts.events import EventLog, failure_event
from contracts.shapes import Strict
from deployments.graph.resources import Resources, WingEnvironment
from interfaces.http.workspace import channels_router, workspace_router
from services.access.quotas import Quotas
from services.health.dependencies import Dependency, HealthMonitor
from services.workspace.channels import Channels
from services.workspace.dispatching import DispatchLimits, InvocationDispatcher
from services.workspace.live import LiveFeeds
from services.workspace.tools import WorkspaceTools

PURGE_EVERY_S = 600.0
KeepDays = Annotated[float, Field(ge=1, le=36_500)]


class WorkspaceArgs(Strict):
    """`args` of the application.

    `max_concurrent` bounds the running requests per replica, event streams among them; more are
    answered 503 at once. `max_streams` bounds the event streams. With `invoke_agents` a human's
    message invokes the agents of its channel; an invocation that the agent runtime has not accepted
    after `give_up_after_s` is given up.

    Steps of runs and settled invocations are kept for `keep_events_days`, messages for
    `keep_messages_days`; null keeps them for ever.
    """

    max_concurrent: Annotated[int, Field(ge=2)] = 400
    max_streams: Annotated[int, Field(ge=1)] = 200
    database_connections: Annotated[int, Field(ge=1, le=64)] = 6
    invoke_agents: bool = True
    give_up_after_s: Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)] = 900.0
    keep_events_days: KeepDays = 7.0
    keep_messages_days: KeepDays | None = None


class WorkspaceRuntime:
    """The parts of one process of the workspace. Construct it on the event loop, then `open` it."""

    def __init__(self, args: WorkspaceArgs, environment: WingEnvironment, events: EventLog) -> None:
        """The caller closes `events`."""
        self._args = args
        self._events = events
        self._resources = Resources()
        self._database = Database(
            environment.database_url,
            events=events,
            limits=PoolLimits(min_size=1, max_size=args.database_connections),
        )
        self._publisher = NatsPublisher(environment.nats_url, events, name="workspace")
        self._channel_events = PostgresChannelEvents(self._database)
        self._outbox = PostgresOutbox(self._database)
        self._feeds = LiveFeeds(self._channel_events, events, max_streams=args.max_streams)
        self._agents = AgentRuntimeClient(
            environment.ingress_url, environment.access.delegations.current
        )
        self._dispatcher = InvocationDispatcher(
            self._outbox,
            self._agents,
            events,
            DispatchLimits(give_up_after_s=args.give_up_after_s),
            environment.access.directory.claimed,
        )
        self._quotas = Quotas(environment.access.directory, TenantRows(self._database))
        dependencies = {"database": Dependency(self._database.ping)}
        if self._publisher.link is not None:
            dependencies["nats"] = Dependency(self._publisher.link.probe, required=False)
        self._monitor = HealthMonitor(dependencies, events)

    async def open(self) -> None:
        """Opens the pool (also while PostgreSQL is away) and starts to dispatch."""
        async with Resources() as resources:
            await resources.closing(self._database).open()
            resources.closing(self._publisher).start()
            resources.closing(self._agents)
            resources.closing(self._feeds).start()
            if self._args.invoke_agents:
                resources.closing(self._dispatcher).start()
            failed = failure_event(self._events, "workspace.purge_failed")
            resources.repeat(self._purge, PURGE_EVERY_S, failed, "workspace:purge")
            resources.closing(self._monitor).start()
            self._resources = resources.pop_all()

    async def close(self) -> None:
        """Gives back the invocations under way, ends the event streams, then closes the rest."""
        await self._resources.aclose()

    def router(self) -> APIRouter:
        """Returns the routes of the application."""
        projects, follow_ups = PostgresProjects(self._database), PostgresFollowUps(self._database)
        channels = Channels(
            PostgresChannels(self._database),
            PostgresMessages(self._database),
            self._channel_events,
            self._outbox,
            self._feeds,
            NatsMessageNotices(self._publisher),
            self._dispatcher.wake,
            self._quotas,
        )
        return workspace_router(
            channels_router(channels),
            projects,
            follow_ups,
            WorkspaceTools(projects, follow_ups),
            self._monitor.health,
        )

    async def _purge(self) -> None:
        args = self._args
        if removed := await self._outbox.purge(args.keep_events_days, args.keep_messages_days):
            self._events.emit("workspace.purged", rows=removed)
