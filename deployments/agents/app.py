"""The application `agents`: one ingress deployment, `AgentRuntime`.

It calls the other applications over HTTP alone. Serve inspects `build`'s annotations, so this
module must not postpone them (`from __future__ import annotations`).
"""

from typing import Any

from ray import serve
from ray.serve.deployment import Application

from configs.agents import load_blueprints
from configs.environment import read_environment
from configs.stores import find_stores
from contracts.agents.blueprints import Blueprint
from deployments.agents.wiring import AgentRuntime, AgentsArgs
from deployments.graph.resources import (
    Resources,
    WingEnvironment,
    access_control,
    open_access,
    open_event_log,
)
from interfaces.http.base.ingress import Ingress

APPLICATION = "agents"
DEPLOYMENT = "AgentRuntime"


class AgentRuntimeReplica:
    """Serves one `AgentRuntime` over HTTP."""

    async def __init__(self, args: AgentsArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        self._args = args
        self._environment = environment = read_environment()
        self._blueprints: dict[str, Blueprint] = {}
        self._is_open = False
        async with Resources() as resources:
            self._events = open_event_log(environment, APPLICATION, resources=resources)
            self._access = await open_access(environment, self._events, resources)
            self._runtime = resources.closing(
                AgentRuntime(
                    args,
                    WingEnvironment.of(environment, self._access),
                    lambda: self._blueprints,
                    self._events,
                )
            )
            self._resources = resources.pop_all()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the blueprints; running runs keep theirs."""
        self._blueprints = {
            agent_id: Blueprint.model_validate(fields)
            for agent_id, fields in user_config["blueprints"].items()
        }
        if not self._is_open:  # the runs that it takes over need their blueprints
            self._is_open = True
            await self._runtime.open()

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


def build(args: AgentsArgs) -> Application:
    """Returns the application's graph.

    Raises:
        ConfigurationError: a blueprint is wrong, no PostgreSQL is known, or the secret of the
            messaging-service is not set.
    """
    environment = read_environment()
    find_stores(environment)
    args.messaging.place(environment.ingress_url, environment.secret)
    config = live_config({})[DEPLOYMENT]
    return serve.deployment(
        serve.ingress()(AgentRuntimeReplica), name=DEPLOYMENT, user_config=config
    ).bind(args)


def live_config(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns each deployment's `user_config` from the files as they are now, for a reload.

    Raises:
        ConfigurationError: a blueprint is wrong.
    """
    AgentsArgs.model_validate(args)
    blueprints = load_blueprints(read_environment().config_dir)
    return {
        DEPLOYMENT: {
            "blueprints": {
                agent_id: blueprint.model_dump(mode="json")
                for agent_id, blueprint in blueprints.items()
            }
        }
    }
