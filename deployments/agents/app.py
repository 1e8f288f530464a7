"""The application `agents`: one ingress deployment, `AgentRuntime`. It speaks to the other applications over HTTP alone.

Serve inspects `build`'s annotations, so this module must not postpone them (`from __future__ import annotations`).
"""

import asyncio
from typing import Any

from ray import serve
from ray.serve.deployment import Application

from configs.agents import load_blueprints
from configs.environment import read_environment
from configs.stores import find_stores
from contracts.agents.api import Blueprint
from deployments.agents.wiring import AgentRuntime, AgentsArgs, AgentSurroundings
from deployments.graph.replica import access_control, open_event_log
from interfaces.http.base.ingress import Ingress

APPLICATION = "agents"
DEPLOYMENT = "AgentRuntime"


class AgentRuntimeReplica:
    """Holds one agent runtime in one replica."""

    async def __init__(self, args: AgentsArgs) -> None:  # type: ignore[misc]  # Serve awaits constructors
        self._args = args
        self._environment = read_environment()
        self._events = open_event_log(self._environment, APPLICATION)
        self._blueprints: dict[str, Blueprint] = {}
        stores = find_stores(self._environment)
        secret = self._environment.internal_secret or self._environment.admin_secret
        surroundings = AgentSurroundings(
            stores.database_url,
            stores.nats_url,
            self._environment.ingress_url,
            secret,
            self._environment.secret,
        )
        self._runtime = AgentRuntime(args, surroundings, lambda: self._blueprints, self._events)
        self._is_open = False

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the blueprints; runs in work go on with what they began with."""
        given = {
            agent_id: Blueprint.model_validate(fields)
            for agent_id, fields in user_config["blueprints"].items()
        }
        self._blueprints = given
        if not self._is_open:  # not before: a run that is taken over needs its blueprint
            self._is_open = True
            await self._runtime.open()

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        return Ingress(
            self._runtime.router(),
            access_control(self._environment),
            self._events,
            max_concurrent=self._args.max_concurrent,
            on_shutdown=self._close,
        )

    async def _close(self) -> None:
        await self._runtime.close()
        await asyncio.to_thread(self._events.close)


def build(args: AgentsArgs) -> Application:
    """Returns the application's graph.

    Raises:
        ConfigurationError: a blueprint is wrong, no PostgreSQL is known, or the messaging-service's secret is not there.
    """
    environment = read_environment()
    find_stores(environment)
    args.messaging.place(environment.ingress_url, environment.internal_secret, environment.secret)
    config = live_config({})[DEPLOYMENT]
    return serve.deployment(
        serve.ingress()(AgentRuntimeReplica), name=DEPLOYMENT, user_config=config
    ).bind(args)


def live_config(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns each deployment's `user_config` from the files as they are now, for a reload without restarts.

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
