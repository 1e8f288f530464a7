"""`python -m launcher run|services|check|reload|status|backup|restore`."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from pathlib import Path

import psycopg

from configs.environment import REPOSITORY, Environment, read_environment
from contracts.errors import ConfigurationError
from launcher import preflight
from launcher.backup import back_up, restore
from launcher.console import Console
from launcher.datadir import DataDir
from launcher.errors import ServiceFailed
from launcher.readiness import is_ready
from launcher.reload_request import reload_graph
from launcher.serve import serve_command
from launcher.supervisor import FAILED, REFUSED, Supervisor

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
    except ServiceFailed as error:
        console.plain(f"failed: {error.message}")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


async def _run(options: argparse.Namespace, environment: Environment, console: Console) -> int:
    match options.command:
        case "reload":
            return await reload_graph(DataDir(environment.data_dir), console)
        case "status":
            return await _status(environment, console)
        case "backup" | "restore":
            return await _archive(options, environment, console)
        case "check":
            preflight.check_settings(environment)
            await preflight.check_stores(environment)
            console.plain("the files are right, and the stores that the environment names answer")
            return 0
    graph = serve_command(options.config) if options.command == "run" else None
    migrate = [sys.executable, "-m", "backends.postgres.migrate"]
    return await Supervisor(environment, console, migrate, graph).run()


async def _status(environment: Environment, console: Console) -> int:
    parts = DataDir(environment.data_dir).read_parts()
    if not parts:
        console.plain(f"nothing is running on {environment.data_dir}")
        return FAILED
    for part in parts.values():
        process = f"pid {part.pid}" if part.pid else "elsewhere"
        console.plain(f"{part.name:<11}{process:<13}{part.address}")
    if (serve := parts.get("Serve")) is not None:
        waiting = await is_ready(f"{serve.address}/health", environment.any_secret)
        console.plain(f"{'health':<11}{'ready' if waiting is None else f'waiting for {waiting}'}")
    return 0


async def _archive(options: argparse.Namespace, environment: Environment, console: Console) -> int:
    try:
        if options.command == "backup":
            file = await back_up(environment, options.file.absolute())
            console.plain(f"{file} holds every tenant's texts: keep it where only you can read")
        else:
            made_at = (await restore(environment, options.file.absolute())).made_at
            console.plain(
                f"restored as of {made_at:%Y-%m-%d %H:%M} UTC; start it: "
                f"DAARION_DATA_DIR={shlex.quote(str(environment.data_dir))} make run"
            )
    except (OSError, psycopg.Error) as error:
        raise ServiceFailed(str(error).partition("\n")[0]) from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launcher", description="Runs PostgreSQL, NATS and the Serve graph."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="the stores and the graph, until Ctrl-C")
    run.add_argument(
        "--config",
        type=Path,
        default=REPOSITORY / "serve_config.yaml",
        help="the graph's configuration file",
    )
    for name, does in (
        ("services", "the stores alone, until Ctrl-C"),
        ("check", "whether every file is right and the stores elsewhere answer; starts nothing"),
        ("reload", "the running graph reads its configuration again"),
        ("status", "one line per running part"),
    ):
        commands.add_parser(name, help=does)
    for name, does in (
        ("backup", "everything that cannot be rebuilt, into a file or a new file in a folder"),
        ("restore", "such a file into an empty data directory"),
    ):
        commands.add_parser(name, help=does).add_argument("file", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
