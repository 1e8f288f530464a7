"""The application `workspace`: one ingress deployment, `Workspace`, the local stand-in for messaging- and projects-service.

Serve inspects `build`'s annotations, so this module must not postpone them (`from __future__ import annotations`).
"""

import asyncio
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.deployment import Application

from backends.http.agent_runtime import AgentRuntimeClient
from backends.nats.link import NatsLink
from backends.nats.publisher import NatsPublisher
from backends.postgres.pool import Database, PoolLimits
from backends.workspace.channels import PostgresChannels
from backends.workspace.notices import NatsMessageNotices
from backends.workspace.outbox import PostgresOutbox
from backends.workspace.projects import PostgresFollowUps, PostgresProjects
from configs.environment import read_environment
from configs.stores import find_stores
from deployments.graph.replica import access_control, open_event_log
from interfaces.http.base.ingress import Ingress
from interfaces.http.workspace.channels import ChannelRoutes
from interfaces.http.workspace.projects import WorkspaceRoutes, workspace_router
from services.health.dependencies import Dependency, HealthMonitor
from services.workspace.channels import ChannelPorts, Channels
from services.workspace.dispatching import DispatchLimits, InvocationDispatcher
from services.workspace.live import LiveFeeds
from services.workspace.tools import WorkspaceTools

APPLICATION = "workspace"
DEPLOYMENT = "Workspace"


class WorkspaceArgs(BaseModel):
    """`args` of the application.

    `max_concurrent` bounds the requests in work per replica, event streams among them; more are answered 503 at once. `max_streams`
    bounds the event streams. With `invoke_agents` a human's message invokes the agents of its channel; one that the agent runtime
    has not taken for `give_up_after_s` is given up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_concurrent: Annotated[int, Field(ge=2)] = 400
    max_streams: Annotated[int, Field(ge=1)] = 200
    database_connections: Annotated[int, Field(ge=1, le=64)] = 6
    invoke_agents: bool = True
    give_up_after_s: Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)] = 900.0


class WorkspaceReplica:
    """Wires the workspace's ports to their adapters in one replica."""

    async def __init__(self, args: WorkspaceArgs) -> None:  # type: ignore[misc]  # Serve awaits constructors
        self._args = args
        self._environment = read_environment()
        self._events = open_event_log(self._environment, APPLICATION)
        stores = find_stores(self._environment)
        self._database = Database(
            stores.database_url,
            events=self._events,
            limits=PoolLimits(min_size=1, max_size=args.database_connections),
        )
        await self._database.open()
        self._link = (
            NatsLink(stores.nats_url, self._events, name="workspace") if stores.nats_url else None
        )
        self._publisher = NatsPublisher(self._link, self._events)
        self._store = PostgresChannels(self._database)
        self._feeds = LiveFeeds(self._store, self._events, max_streams=args.max_streams)
        secret = self._environment.internal_secret or self._environment.admin_secret
        self._runtime = AgentRuntimeClient(self._environment.ingress_url, secret)
        self._dispatcher = InvocationDispatcher(
            PostgresOutbox(self._database),
            self._runtime,
            self._events,
            DispatchLimits(give_up_after_s=args.give_up_after_s),
        )
        dependencies = {"database": Dependency(self._database.ping)}
        if self._link is not None:
            dependencies["nats"] = Dependency(self._link.probe, required=False)
        self._monitor = HealthMonitor(dependencies)
        self._start()

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        projects, follow_ups = PostgresProjects(self._database), PostgresFollowUps(self._database)
        access = access_control(self._environment)
        ports = ChannelPorts(
            self._store, self._feeds, NatsMessageNotices(self._publisher), self._dispatcher.wake
        )
        channels = ChannelRoutes(Channels(ports), lambda headers: access.check(headers, admin=True))
        routes = WorkspaceRoutes(
            projects, follow_ups, WorkspaceTools(projects, follow_ups), self._monitor.health
        )
        return Ingress(
            workspace_router(routes, channels),
            access,
            self._events,
            max_concurrent=self._args.max_concurrent,
            on_shutdown=self._close,
        )

    def _start(self) -> None:
        if self._link is not None:
            self._link.start()
        self._publisher.start()
        self._feeds.start()
        if self._args.invoke_agents:
            self._dispatcher.start()
        self._monitor.start()

    async def _close(self) -> None:
        await self._monitor.close()
        await self._dispatcher.close()
        await self._feeds.close()
        await self._runtime.close()
        await self._publisher.close()
        if self._link is not None:
            await self._link.close()
        await self._database.close()
        await asyncio.to_thread(self._events.close)


def build(args: WorkspaceArgs) -> Application:
    """Returns the application's graph. Raises ConfigurationError when no PostgreSQL is known."""
    find_stores(read_environment())
    return serve.deployment(serve.ingress()(WorkspaceReplica), name=DEPLOYMENT).bind(args)
