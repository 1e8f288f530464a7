"""`python -m launcher run|services|reload|status`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from configs.environment import REPOSITORY, Environment, read_environment
from contracts.errors import ConfigurationError
from launcher import state
from launcher.console import Console
from launcher.datadir import DataDir, DataDirLock
from launcher.readiness import is_ready
from launcher.reload_request import reload_graph
from launcher.serve import serve_command
from launcher.supervisor import FAILED, REFUSED, GraphCommand, Supervisor

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns 0 (done), 1 (failed) or 2 (refused, one line says why)."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        return asyncio.run(_run(options, read_environment(), console))
    except ConfigurationError as error:
        console.plain(f"refused: {error.message}")
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED


async def _run(options: argparse.Namespace, environment: Environment, console: Console) -> int:
    match options.command:
        case "run":
            return await _supervisor(
                environment, console, _graph(Path(options.config), environment)
            ).run()
        case "services":
            return await _supervisor(environment, console, None).run()
        case "reload":
            return await reload_graph(DataDir(environment.data_dir), console)
        case _:
            return await _status(environment, console)


def _supervisor(
    environment: Environment, console: Console, graph: GraphCommand | None
) -> Supervisor:
    return Supervisor(
        environment, console, [sys.executable, "-m", "backends.postgres.migrate"], graph
    )


def _graph(config: Path, environment: Environment) -> GraphCommand:
    config = config.absolute()
    return GraphCommand(
        serve_command(config), [config, *sorted(environment.config_dir.glob("*.yaml"))]
    )


async def _status(environment: Environment, console: Console) -> int:
    parts = _running(environment)
    if not parts:
        console.plain(f"nothing is running on {environment.data_dir}")
        return FAILED
    for part in parts:
        console.plain(
            f"{part.name:<11}{f'pid {part.pid}' if part.pid else 'elsewhere':<13}{part.address}"
        )
    serve = next((part for part in parts if part.name == "Serve"), None)
    if serve is not None:
        waiting = await is_ready(f"{serve.address}/health")
        console.plain(f"{'health':<11}{'ready' if waiting is None else f'waiting for {waiting}'}")
    return 0


def _running(environment: Environment) -> list[state.Part]:
    """Returns what the running launcher recorded; ignores the files of a killed one."""
    data_dir = DataDir(environment.data_dir)
    return state.read_parts(data_dir) if DataDirLock(data_dir).holder() is not None else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launcher", description="Runs PostgreSQL, NATS and the Serve graph."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="the stores and the graph, until Ctrl-C")
    run.add_argument(
        "--config",
        default=str(REPOSITORY / "serve_config.yaml"),
        help="the graph's configuration file",
    )
    commands.add_parser("services", help="the stores alone, until Ctrl-C")
    commands.add_parser("reload", help="the running graph reads its configuration again")
    commands.add_parser("status", help="one line per running part")
    return parser


if __name__ == "__main__":
    sys.exit(main())
