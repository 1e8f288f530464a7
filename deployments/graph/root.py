"""The application `root`: aggregate health, and the documentation of the whole surface.

Serve inspects `build`'s annotations, so this module must not postpone them
(`from __future__ import annotations`).
"""

import asyncio
from functools import partial
from typing import Any

from ray import serve
from ray.serve.deployment import Application

from backends.http.application_health import ApplicationHealth
from backends.nats.link import NatsLink
from backends.postgres.pool import Database, PoolLimits
from backends.postgres.waiting import WaitingWork
from common.http.client import open_client
from common.retry import retry
from common.tasks import end_tasks, spawn
from configs.access import AccessSettings, contents_of, load_access
from configs.environment import read_environment
from configs.stores import find_stores
from contracts.errors import DaarionError
from contracts.events import failure_event
from contracts.shapes import Strict
from deployments.graph.resources import Resources, access_control, open_access, open_event_log
from interfaces.http.access import access_router, is_admin
from interfaces.http.base.ingress import HEALTH_PATHS, Ingress
from interfaces.http.graph.openapi import build_openapi
from interfaces.http.graph.root import OPEN_PATHS, root_router
from services.health.dependencies import Dependency
from services.health.graph import GraphHealth

APPLICATION = "root"
DEPLOYMENT = "Root"
MAX_CONCURRENT = 100
APPLY_RETRY_S = 1.0
WAITING_EVERY_S = 15.0
ONE_CONNECTION = PoolLimits(min_size=1, max_size=1)


class RootArgs(Strict):
    """`args` of the application: route prefixes of the applications whose health counts."""

    applications: dict[str, str]


class RootReplica:
    """Serves the health of all applications and their documentation."""

    async def __init__(self, args: RootArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        self._environment = environment = read_environment()
        self._prefixes = args.applications
        stores = find_stores(environment)
        async with Resources() as resources:
            self._events = open_event_log(environment, APPLICATION, resources=resources)
            self._access = await open_access(environment, self._events, resources)
            assert self._access.audit is not None
            self._principals, self._audit = self._access.directory.store, self._access.audit.store
            self._applying: set[asyncio.Task[None]] = set()
            resources.push_async_callback(end_tasks, self._applying)
            http = await resources.enter_async_context(open_client())
            applications = {
                name: ApplicationHealth(
                    http,
                    f"{environment.ingress_url}{prefix}/health",
                    self._access.delegations.current,
                )
                for name, prefix in args.applications.items()
            }
            database = Database(
                stores.database_url, events=self._events, limits=ONE_CONNECTION, name="metrics"
            )
            await resources.closing(database).open()
            self._work = WaitingWork(database)
            failed = failure_event(self._events, "metrics.not_sampled")
            resources.repeat(self._sample, WAITING_EVERY_S, failed, "root:metrics")
            probes = {"database": Dependency(self._principals.revision)}
            if stores.nats_url:
                link = resources.closing(NatsLink(stores.nats_url, self._events, name=APPLICATION))
                link.start()
                probes["nats"] = Dependency(link.probe, required=False)
            self._health = resources.closing(GraphHealth(applications, probes, self._events))
            self._health.start()
            self._resources = resources.pop_all()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Carries `access.yaml` to the store, from which all replicas read it."""
        settings = AccessSettings.model_validate(user_config)
        contents = contents_of(settings, self._environment.secret)
        await end_tasks(self._applying)
        apply = partial(self._principals.apply, *contents)
        try:
            await apply()
        except DaarionError as error:
            self._events.emit("access.not_applied", error=error.type)
            again = retry(
                apply,
                lambda error: isinstance(error, DaarionError),
                first_s=APPLY_RETRY_S,
                longest_s=APPLY_RETRY_S,
            )
            spawn(again, self._applying)

    async def _sample(self) -> None:
        self._events.emit("metrics.sampled", samples=await self._work.samples())

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        router = root_router(
            self._health.health,
            self._document,
            self._prefixes.values(),
            access_router(self._principals, self._audit),
        )
        return Ingress(
            router,
            access_control(self._environment, self._access),
            self._events,
            max_concurrent=MAX_CONCURRENT,
            is_admin=is_admin,
            open_paths=HEALTH_PATHS | OPEN_PATHS,
            on_shutdown=self._resources.aclose,
        )

    def _document(self) -> dict[str, Any]:
        return build_openapi(self._prefixes)


def build(args: RootArgs) -> Application:
    """Returns the application's graph.

    Raises:
        ConfigurationError: `access.yaml` is wrong, or no PostgreSQL is known.
    """
    find_stores(read_environment())
    return serve.deployment(
        serve.ingress()(RootReplica), name=DEPLOYMENT, user_config=live_config({})[DEPLOYMENT]
    ).bind(args)


def live_config(_args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns each deployment's `user_config` from the files as they are now, for a reload.

    Raises:
        ConfigurationError: `access.yaml` is wrong, or names a variable that is not set.
    """
    environment = read_environment()
    settings = load_access(environment.config_dir)
    contents_of(settings, environment.secret)
    return {DEPLOYMENT: settings.model_dump(mode="json", exclude_unset=True)}
