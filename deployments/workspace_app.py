"""The application `workspace`: one ingress deployment, `Workspace`, the local stand-in for messaging- and projects-service.

Serve inspects `build`'s annotations, so this module must not postpone them (`from __future__ import annotations`).
"""

import asyncio
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.deployment import Application

from backends.database import Database, PoolLimits
from backends.workspace import PostgresFollowUps, PostgresProjects
from configs.environment import read_environment
from configs.stores import find_stores
from deployments.replica import access_control, open_event_log
from interfaces.http.ingress import Ingress
from interfaces.http.workspace import WorkspaceRoutes, workspace_router
from services.health import Dependency, HealthMonitor
from services.workspace.tools import WorkspaceTools

APPLICATION = "workspace"
DEPLOYMENT = "Workspace"


class WorkspaceArgs(BaseModel):
    """`args` of the application. `max_concurrent` bounds the requests in work per replica; more are answered 503 at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_concurrent: Annotated[int, Field(ge=1)] = 200
    database_connections: Annotated[int, Field(ge=1, le=64)] = 4


class WorkspaceReplica:
    """Wires the workspace's ports to their adapters in one replica."""

    async def __init__(self, args: WorkspaceArgs) -> None:  # type: ignore[misc]  # Serve awaits constructors
        self._args = args
        self._environment = read_environment()
        self._events = open_event_log(self._environment, APPLICATION)
        url = find_stores(self._environment).database_url
        self._database = Database(url, events=self._events, limits=PoolLimits(min_size=1, max_size=args.database_connections))
        await self._database.open()
        self._monitor = HealthMonitor({"database": Dependency(self._database.ping)})
        self._monitor.start()

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        projects, follow_ups = PostgresProjects(self._database), PostgresFollowUps(self._database)
        routes = WorkspaceRoutes(projects, follow_ups, WorkspaceTools(projects, follow_ups), self._monitor.health)
        return Ingress(
            workspace_router(routes),
            access_control(self._environment),
            self._events,
            max_concurrent=self._args.max_concurrent,
            on_shutdown=self._close,
        )

    async def _close(self) -> None:
        await self._monitor.close()
        await self._database.close()
        await asyncio.to_thread(self._events.close)


def build(args: WorkspaceArgs) -> Application:
    """Returns the application's graph. Raises ConfigurationError when no PostgreSQL is known."""
    find_stores(read_environment())
    return serve.deployment(serve.ingress()(WorkspaceReplica), name=DEPLOYMENT).bind(args)
