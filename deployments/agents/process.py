"""`python -m deployments.agents.process`: the agent runtime in a process of its own, without Ray.

    --ingress URL   the graph's ingress (default: the one of DAARION_HOST and DAARION_PORT)
    --host, --port  where it listens (default: 127.0.0.1 and a free port), below
                    /internal/agent-runtime as in the graph
    --args JSON     the same `args` that the application takes in the graph

All agent runtimes on one database share its runs, by leases. SIGTERM or SIGINT ends the process:
running runs get a few seconds, the rest is handed over. Exit status 2 and one line on stderr when
the configuration is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from configs.agents import load_blueprints
from configs.environment import Environment, read_environment, refuse_open_ingress
from configs.yaml_files import describe
from contracts.errors import ConfigurationError
from deployments.agents.wiring import AgentRuntime, AgentsArgs
from deployments.graph.request_heads import BoundedHeads
from deployments.graph.resources import (
    Resources,
    WingEnvironment,
    access_control,
    open_access,
    open_event_log,
)
from interfaces.http.base.ingress import Ingress

APPLICATION = "agents"
PREFIX = "/internal/agent-runtime"
STOP_S = 15
BACKLOG = 1_024


class _Server(uvicorn.Server):
    """Leaves signals to `serve`: uvicorn would raise them again before the runtime is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    environment: Environment, ingress_url: str, listener: socket.socket, args: AgentsArgs
) -> None:
    """Runs until a signal asks to stop. Raises ConfigurationError."""
    blueprints = load_blueprints(environment.config_dir)
    async with Resources() as resources:
        events = open_event_log(environment, APPLICATION, resources=resources, listeners=())
        access = await open_access(environment, events, resources)
        wing_environment = replace(WingEnvironment.of(environment, access), ingress_url=ingress_url)
        runtime = resources.closing(
            AgentRuntime(args, wing_environment, lambda: blueprints, events)
        )
        await runtime.open()
        ingress = Ingress(
            runtime.router(),
            access_control(environment, access),
            events,
            max_concurrent=args.max_concurrent,
            application=APPLICATION,
        )
        server = _Server(
            uvicorn.Config(
                _below(PREFIX, ingress),
                http=BoundedHeads,
                log_level="warning",
                lifespan="off",
                timeout_graceful_shutdown=STOP_S,
            )
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
        await server.serve(sockets=[listener])


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.agents.process",
        description="The agent runtime in a process of its own, beside the graph.",
    )
    parser.add_argument("--ingress", help="the graph's ingress, such as http://127.0.0.1:8000")
    parser.add_argument("--host", default="127.0.0.1", help="where it listens")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--args", default="{}", help="the application's `args`, as a JSON object")
    given = parser.parse_args(argv)
    try:
        environment = read_environment()
        args = _arguments(given.args)
        refuse_open_ingress(given.host, environment, f"--host {given.host}")
        with _listener(given.host, given.port) as listener:
            address = listener.getsockname()
            url = f"http://{address[0]}:{address[1]}{PREFIX}"
            print(f"agent runtime at {url}", flush=True)  # noqa: T201  # a command's output
            asyncio.run(
                serve(
                    environment,
                    (given.ingress or environment.ingress_url).rstrip("/"),
                    listener,
                    args,
                )
            )
    except (ConfigurationError, OSError) as error:
        print(f"agent runtime: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _arguments(text: str) -> AgentsArgs:
    try:
        return AgentsArgs.model_validate_json(text)
    except ValidationError as error:
        raise ConfigurationError(f"--args: {describe(error)}") from None


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on connections of a socket whose protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)  # requests wait here until the runtime is open
    return listener


def _below(prefix: str, app: ASGIApp) -> ASGIApp:
    async def rooted(scope: Scope, receive: Receive, send: Send) -> None:
        await app(
            {**scope, "root_path": prefix} if scope["type"] == "http" else scope, receive, send
        )

    return rooted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
