"""The processes that the tools benchmark calls: the endpoint behind a tool, and Toolcore."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from backends.access.principals import PostgresPrincipals
from backends.postgres.pool import Database
from backends.tools.ledger import PostgresToolLedger
from backends.tools.registry import PostgresToolStore
from contracts.events import Published
from contracts.health import Health
from contracts.tools.api import EgressRule, ToolDefinition
from contracts.tools.policy import CallBounds, PolicyRules
from executors.http.executor import HttpToolExecutor
from interfaces.http.base.access import AccessControl
from interfaces.http.base.ingress import Ingress
from interfaces.http.tools import ToolRoutes, is_admin_route, tools_router
from services.access.authentication import Authentication
from services.access.directory import Directory
from services.tools.application import Toolcore, ToolcoreConfiguration
from services.tools.policy import Policy

EFFECTS = ("read", "idempotent", "write")
ANSWER = json.dumps(
    [{"id": f"p{number}", "name": f"Проєкт {number}", "status": "active"} for number in range(10)]
).encode()
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"microdao_id": {"type": "string"}, "limit": {"type": "integer", "minimum": 1}},
}
RESULT_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"type": "object", "required": ["id", "name"]},
}


class Nowhere:
    """Event log, usage sink and secrets of a benchmark."""

    def emit(self, _event: str, **_fields: Any) -> None:
        """Drops the event."""

    def publish(self, _event: Published) -> None:
        """Drops the event."""

    def value(self, _name: str) -> str | None:
        """There is no secret."""


async def target(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body and answers ten projects."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json")],
        }
    )
    await send({"type": "http.response.body", "body": ANSWER})


async def toolcore(database_url: str, target_url: str) -> ASGIApp:
    """Returns the application `tools` over one database, with a tool of each effect."""
    nowhere = Nowhere()
    database = Database(database_url, events=nowhere)
    await database.open()
    store = PostgresToolStore(database, events=nowhere)
    core = Toolcore(store, PostgresToolLedger(database), nowhere, nowhere)
    await core.start()
    executors = {"http": HttpToolExecutor(nowhere, nowhere)}
    definitions = [_definition(effect, target_url) for effect in EFFECTS]
    await core.configure(
        ToolcoreConfiguration(
            definitions,
            executors,
            Policy(PolicyRules(), CallBounds()),
            lambda definition: definition,
        )
    )
    directory = Directory(PostgresPrincipals(database, nowhere), nowhere)
    routes = ToolRoutes(core, lambda: Health(status="ready"))
    return Ingress(
        tools_router(routes),
        AccessControl(Authentication(None, None, directory)),
        nowhere,
        max_concurrent=500,
        is_admin=is_admin_route,
    )


def _definition(effect: Any, target_url: str) -> ToolDefinition:
    return ToolDefinition(
        id=f"bench.{effect}",
        name=effect,
        input_schema=SCHEMA,
        output_schema=RESULT_SCHEMA,
        executor="http",
        target=target_url,
        effect=effect,
        egress=[EgressRule(cidr="127.0.0.1/32")],
    )


async def main() -> None:
    """Serves the target, or Toolcore if a target is named, over DATABASE_URL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target")
    given = parser.parse_args()
    app: ASGIApp = (
        target if given.target is None else await toolcore(os.environ["DATABASE_URL"], given.target)
    )
    config = uvicorn.Config(
        app, host="127.0.0.1", port=given.port, log_level="error", access_log=False, lifespan="off"
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main())
