"""`python -m deployments.agents.process`: the agent runtime beside the graph, in a plain process without Ray.

    --ingress URL   the graph's ingress (by default the one that DAARION_HOST and DAARION_PORT name)
    --host, --port  where it answers (127.0.0.1, and a free port by default); below /internal/agent-runtime as in the graph
    --args JSON     what `args` of the application takes in the graph

Runs are shared with every other agent runtime on the same database, by their leases. Ends with SIGTERM or SIGINT: runs in work get
a few seconds, what is left is handed over. Exit status 2 and one line when the configuration is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator, Sequence

import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from configs.agents import load_blueprints
from configs.environment import Environment, read_environment, refuse_open_ingress
from configs.stores import find_stores
from configs.yaml_files import describe
from contracts.errors import ConfigurationError
from deployments.agents.wiring import AgentRuntime, AgentsArgs, AgentSurroundings
from deployments.graph.replica import access_control, open_event_log
from deployments.graph.request_heads import BoundedHeads
from interfaces.http.base.ingress import Ingress

PREFIX = "/internal/agent-runtime"
STOP_S = 15
BACKLOG = 1_024


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again after its own end, before ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Ends `serve` once the requests in work have ended."""
        self.should_exit = True


async def serve(
    environment: Environment, ingress_url: str, listener: socket.socket, args: AgentsArgs
) -> None:
    """Runs until a signal asks to stop. Raises ConfigurationError."""
    stores = find_stores(environment)
    blueprints = load_blueprints(environment.config_dir)
    events = open_event_log(environment, "agents")
    secret = environment.internal_secret or environment.admin_secret
    surroundings = AgentSurroundings(
        stores.database_url, stores.nats_url, ingress_url, secret, environment.secret
    )
    runtime = AgentRuntime(args, surroundings, lambda: blueprints, events)
    await runtime.open()
    ingress = Ingress(
        runtime.router(), access_control(environment), events, max_concurrent=args.max_concurrent
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
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    try:
        await server.serve(sockets=[listener])
    finally:
        await runtime.close()
        await asyncio.to_thread(events.close)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="agent-runtime", description="The agent runtime as a plain process beside the graph."
    )
    parser.add_argument("--ingress", help="the graph's ingress, such as http://127.0.0.1:8000")
    parser.add_argument("--host", default="127.0.0.1", help="where it listens")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument(
        "--args", default="{}", help="what `args` of the application takes, as a JSON object"
    )
    given = parser.parse_args(argv)
    try:
        environment = read_environment()
        args = _arguments(given.args)
        refuse_open_ingress(given.host, environment, f"--host {given.host}")
        with _listener(given.host, given.port) as listener:
            address = listener.getsockname()
            print(f"agent runtime at http://{address[0]}:{address[1]}{PREFIX}", flush=True)  # noqa: T201  # what a person starts it for
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
    # With the protocol named, asyncio switches the kernel's delay of small packets off for what is accepted here.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)  # who reads the address may connect: requests wait until all is open
    return listener


def _below(prefix: str, app: ASGIApp) -> ASGIApp:
    async def rooted(scope: Scope, receive: Receive, send: Send) -> None:
        await app(
            {**scope, "root_path": prefix} if scope["type"] == "http" else scope, receive, send
        )

    return rooted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
