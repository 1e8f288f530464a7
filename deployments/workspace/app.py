"""The application `workspace`: one ingress deployment, `Workspace`.

It stands in locally for messaging-service and projects-service. Serve inspects `build`'s
annotations, so this module must not postpone them (`from __future__ import annotations`).
"""

from ray import serve
from ray.serve.deployment import Application

from configs.environment import read_environment
from configs.stores import find_stores
from deployments.graph.resources import (
    Resources,
    WingEnvironment,
    access_control,
    open_access,
    open_event_log,
)
from deployments.workspace.wiring import WorkspaceArgs, WorkspaceRuntime
from interfaces.http.base.ingress import Ingress

APPLICATION = "workspace"
DEPLOYMENT = "Workspace"


class WorkspaceReplica:
    """Serves one `WorkspaceRuntime` over HTTP."""

    async def __init__(self, args: WorkspaceArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        self._args = args
        self._environment = environment = read_environment()
        async with Resources() as resources:
            self._events = open_event_log(environment, APPLICATION, resources=resources)
            self._access = await open_access(environment, self._events, resources)
            self._runtime = resources.closing(
                WorkspaceRuntime(args, WingEnvironment.of(environment, self._access), self._events)
            )
            await self._runtime.open()
            self._resources = resources.pop_all()

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        return Ingress(
            self._runtime.router(),
            access_control(self._environment, self._access),
            self._events,
            max_concurrent=self._args.max_concurrent,
            application=APPLICATION,
            on_shutdown=self._resources.aclose,
        )


def build(args: WorkspaceArgs) -> Application:
    """Returns the application's graph. Raises ConfigurationError when no PostgreSQL is known."""
    find_stores(read_environment())
    return serve.deployment(serve.ingress()(WorkspaceReplica), name=DEPLOYMENT).bind(args)
