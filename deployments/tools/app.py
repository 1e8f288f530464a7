"""The application `tools`: the ingress deployment `Toolcore` and `PythonToolRunner` behind it.

Serve inspects `build`'s annotations, so this module must not postpone them
(`from __future__ import annotations`).
"""

from typing import Annotated, Any
from uuid import uuid4

from pydantic import Field
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from configs.environment import read_environment
from configs.stores import find_stores
from configs.tools import ToolsSettings
from configs.yaml_files import load_yaml
from contracts.shapes import Strict
from deployments.graph.resources import (
    Resources,
    WingEnvironment,
    access_control,
    open_access,
    open_event_log,
)
from deployments.tools.python_runner import DEPLOYMENT as RUNNER
from deployments.tools.python_runner import (
    PythonRunnerArgs,
    PythonToolClient,
    python_tool_runner,
    runner_config,
)
from deployments.tools.wiring import ToolsRuntime, check_tools
from interfaces.http.base.ingress import Ingress
from interfaces.http.tools import TOOL_ERRORS, is_admin_route
from interfaces.tools.answers import answer_handle

APPLICATION = "tools"
DEPLOYMENT = "Toolcore"
SETTINGS_FILE = "tools.yaml"


class ToolsArgs(Strict):
    """`args` of the application.

    `max_concurrent` bounds the running requests per replica; more are answered 503 at once.
    `python` bounds the runner.
    """

    max_concurrent: Annotated[int, Field(ge=1)] = 200
    python: PythonRunnerArgs = PythonRunnerArgs()


class ToolcoreReplica:
    """Serves one `ToolsRuntime` over HTTP and through its handle."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: ToolsArgs, runner: DeploymentHandle
    ) -> None:
        self._args = args
        self._environment = environment = read_environment()
        async with Resources() as resources:
            self._events = open_event_log(environment, APPLICATION, resources=resources)
            self._access = await open_access(environment, self._events, resources)
            self._runtime = resources.closing(
                ToolsRuntime(
                    WingEnvironment.of(environment, self._access),
                    PythonToolClient(runner),
                    self._events,
                )
            )
            await self._runtime.open()
            self._resources = resources.pop_all()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes `tools.yaml`; calls under way keep the old tools, rules and secrets."""
        await self._runtime.reconfigure(ToolsSettings.model_validate(user_config))

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        return Ingress(
            self._runtime.router(),
            access_control(self._environment, self._access),
            self._events,
            max_concurrent=self._args.max_concurrent,
            application=APPLICATION,
            is_admin=is_admin_route,
            error_shapes=TOOL_ERRORS,
            on_shutdown=self._resources.aclose,
        )

    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """For handles: takes the body of `POST /call` and returns its answer's."""
        return await answer_handle(self._runtime.calls(), request, f"handle-{uuid4().hex}")


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
    """Returns each deployment's `user_config` from the files as they are now, for a reload.

    Raises:
        ConfigurationError: `tools.yaml` is wrong.
    """
    ToolsArgs.model_validate(args)
    environment = read_environment()
    settings = load_yaml(environment.config_dir / SETTINGS_FILE, ToolsSettings)
    check_tools(settings, environment.ingress_url, SETTINGS_FILE)
    return {DEPLOYMENT: settings.model_dump(mode="json"), RUNNER: runner_config(settings)}
