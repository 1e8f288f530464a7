"""The application `memory`: one ingress deployment, `MemoryOrchestrator`.

Serve inspects `build`'s annotations, so this module must not postpone them
(`from __future__ import annotations`).
"""

from typing import Annotated, Any

from pydantic import Field
from ray import serve
from ray.serve.deployment import Application

from configs.engines.config import FileName, load_engines
from configs.environment import read_environment
from configs.memory import MemorySettings
from configs.stores import find_stores
from configs.yaml_files import load_yaml
from contracts.shapes import Strict
from deployments.engines.clients import RerankerClient, open_embedder
from deployments.graph.resources import (
    Resources,
    WingEnvironment,
    access_control,
    open_access,
    open_event_log,
)
from deployments.memory.wiring import MemoryRuntime
from interfaces.http.base.ingress import Ingress
from interfaces.http.memory import UPLOADS, is_admin, memory_router
from services.health.dependencies import Dependency, HealthMonitor

APPLICATION = "memory"
DEPLOYMENT = "MemoryOrchestrator"
SETTINGS_FILE = "memory.yaml"


class MemoryArgs(Strict):
    """`args` of the application.

    `engines_file` is the file that the application `engines` reads; its sections `embedder` and
    `reranker` count. A replica serves `max_concurrent` requests at a time; more are answered 503 at
    once.
    """

    engines_file: FileName = "engines.yaml"
    max_concurrent: Annotated[int, Field(ge=1)] = 200


class MemoryReplica:
    """Serves one `MemoryRuntime` over HTTP."""

    async def __init__(self, args: MemoryArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        self._args = args
        self._environment = environment = read_environment()
        settings = load_yaml(environment.config_dir / SETTINGS_FILE, MemorySettings)
        engines = load_engines(environment, args.engines_file)
        async with Resources() as resources:
            self._events = open_event_log(environment, APPLICATION, resources=resources)
            self._access = await open_access(environment, self._events, resources)
            embedder = resources.closing(open_embedder(engines.embedder, environment))
            reranker = RerankerClient() if engines.reranker is not None else None
            self._runtime = resources.closing(
                MemoryRuntime(
                    settings,
                    WingEnvironment.of(environment, self._access),
                    embedder,
                    self._events,
                    reranker,
                )
            )
            await self._runtime.open()
            dependencies = {
                "database": Dependency(self._runtime.database.ping),
                "vectors": Dependency(self._runtime.check_vectors),
                "embedder": Dependency(embedder.ping, required=False),
            }
            if reranker is not None:
                dependencies["reranker"] = Dependency(reranker.ping, required=False)
            self._monitor = resources.closing(HealthMonitor(dependencies, self._events))
            self._monitor.start()
            self._resources = resources.pop_all()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the sections of `memory.yaml` that may change while requests are served."""
        await self._runtime.reconfigure(MemorySettings.model_validate(user_config))

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        return Ingress(
            memory_router(lambda: self._runtime.cases, self._monitor.health, self._runtime.mcp),
            access_control(self._environment, self._access),
            self._events,
            max_concurrent=self._args.max_concurrent,
            application=APPLICATION,
            is_admin=is_admin,
            uploads=UPLOADS,
            on_shutdown=self._resources.aclose,
        )


def build(args: MemoryArgs) -> Application:
    """Returns the application's graph.

    Raises:
        ConfigurationError: `memory.yaml` or `engines_file` is wrong, or PostgreSQL unknown.
    """
    environment = read_environment()
    find_stores(environment)
    load_engines(environment, args.engines_file)
    ingress = serve.deployment(
        serve.ingress()(MemoryReplica), name=DEPLOYMENT, user_config=live_config({})[DEPLOYMENT]
    )
    return ingress.bind(args)


def live_config(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns each deployment's `user_config` from the files as they are now, for a reload.

    Raises:
        ConfigurationError: `memory.yaml` is wrong.
    """
    MemoryArgs.model_validate(args)
    settings = load_yaml(read_environment().config_dir / SETTINGS_FILE, MemorySettings)
    return {DEPLOYMENT: settings.model_dump(mode="json")}
