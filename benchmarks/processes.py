"""What a benchmark starts: the mock upstream, the relay, PostgreSQL and the real graph.

Nothing outlives it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import psutil
import yaml

from backends.postgres.migrate import migrate
from configs.environment import REPOSITORY, read_environment
from launcher.instance import Instance
from launcher.ports import free_ports
from launcher.postgres import PostgresServer
from launcher.process import ChildProcess, Command
from launcher.serve import ServeGraph, serve_command, serve_environment

KEY = "sk-benchmark"
KEY_VARIABLE = "BENCHMARK_UPSTREAM_KEY"
MODEL = "bench"
METERED_CALLER = ("agent:metered", "microdao:metered")
"""An agent and a microDAO, each with all five kinds of limit, high enough to refuse nothing."""
_HIGH = {
    "requests_per_minute": 10**8,
    "tokens_per_minute": 10**11,
    "concurrent_calls": 10**5,
    "usd_per_day": 10**6,
    "usd_per_month": 10**7,
}
FLOOR_PREFIX = "/floor"
BARE_PREFIX = "/bare"
GRAPH_TIMEOUT_S, ENGINE_TIMEOUT_S = 180.0, 420.0


class NotMeasured(Exception):
    """Something could not be measured; the message is one line."""


@dataclass(frozen=True)
class Started:
    """A running system: URL, process, and for the graph the secret that callers present."""

    url: str
    pid: int
    secret: str = field(default="", repr=False)

    def family(self, *parts: str) -> list[psutil.Process]:
        """Returns the process and its descendants, or those whose command line holds one of
        `parts`.
        """
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            return [
                one
                for one in (root, *root.children(recursive=True))
                if not parts or any(part in _command(one) for part in parts)
            ]
        return []


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Returns the CPU time that the processes have used so far."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def resident_mib(processes: list[psutil.Process]) -> float:
    """Returns the memory of the processes in MiB; shared pages are divided (PSS) where known."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", 0) or memory.rss
    return total / 2**20


def _command(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@asynccontextmanager
async def python_module(name: str, *arguments: str, folder: Path) -> AsyncIterator[Started]:
    """Runs `python -m <name> … --port <free>` and yields it once it accepts connections."""
    argv = [sys.executable, "-m", name, *arguments, "--port"]
    async with child_on_port(name, argv, os.environ, folder, 30) as started:
        yield started


@asynccontextmanager
async def child_on_port(
    name: str, argv: list[str], variables: Mapping[str, str], folder: Path, ready_s: float
) -> AsyncIterator[Started]:
    """Runs `argv` with a free port appended until it accepts connections.

    The port follows a last word that ends in `=`, else it is a word of its own.

    Raises:
        NotMeasured: it ended, or was not ready within `ready_s`.
    """
    (port,) = free_ports(1)
    command = [*argv[:-1], f"{argv[-1]}{port}"] if argv[-1].endswith("=") else [*argv, str(port)]
    log = folder / f"{name}.log"
    child = ChildProcess(name, log, Command(command, variables, REPOSITORY))
    await child.start()
    try:
        await _until(lambda: _accepts(port), child, ready_s, log)
        yield Started(f"http://127.0.0.1:{port}", child.pid or 0)
    finally:
        await child.stop()


@asynccontextmanager
async def running_graph(
    folder: Path,
    upstream: str,
    serve_config: Path,
    *,
    replicas: int = 1,
    engine: bool = False,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Started]:
    """Boots PostgreSQL and the graph of `serve_config`, reduced to `llm` and the floor.

    Its provider is the upstream at `upstream`; with `engine` there is the local engine instead, and
    its handle behind HTTP in place of the floor. Of OpenTelemetry's variables it has those of
    `variables` alone.
    """
    folder.mkdir(exist_ok=True)
    secret = secrets.token_urlsafe(24)
    config = await asyncio.to_thread(
        _write_configuration, folder, None if engine else upstream, serve_config, replicas
    )
    async with PostgresServer(folder / "data") as postgres:
        await migrate(postgres.urls.owner)
        instance = await asyncio.to_thread(Instance.create)
        environment = read_environment({**_variables(folder, secret), **variables})
        inherited = serve_environment(
            environment,
            instance,
            database_url=postgres.urls.service,
            nats_url=None,
            cpus=os.cpu_count() or 1,
        )
        log = folder / "graph.log"
        graph = ServeGraph(serve_command(config), inherited, cwd=REPOSITORY, log_file=log)
        await graph.start()
        try:
            url = f"http://127.0.0.1:{environment.port}"
            await _until(
                lambda: _answering(
                    f"{url}/internal/llm/health", f"{url}{BARE_PREFIX if engine else FLOOR_PREFIX}"
                ),
                graph,
                ENGINE_TIMEOUT_S if engine else GRAPH_TIMEOUT_S,
                log,
            )
            yield Started(url, graph.pid or 0, secret)
        finally:
            await graph.stop()
            await asyncio.to_thread(instance.remove)


def _variables(folder: Path, secret: str) -> Mapping[str, str]:
    own = {
        "DAARION_DATA_DIR": str(folder / "data"),
        "DAARION_CONFIG_DIR": str(folder / "configs"),
        "DAARION_HOST": "127.0.0.1",
        "DAARION_PORT": str(free_ports(1)[0]),
        "DAARION_INTERNAL_SECRET": secret,
        "DAARION_ADMIN_SECRET": secrets.token_urlsafe(24),
        KEY_VARIABLE: KEY,
    }
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DAARION_", "OTEL_"))
    } | own


def _write_configuration(
    folder: Path, upstream: str | None, serve_config: Path, replicas: int
) -> Path:
    """Writes the reduced graph and a copy of the configuration folder; returns the former.

    Without an upstream the copy is as shipped, with the local engine.
    """
    configs = folder / "configs"
    configs.mkdir()
    for file in (REPOSITORY / "configs").glob("*.yaml"):
        shutil.copy(file, configs)
    shutil.copytree(REPOSITORY / "configs/templates", configs / "templates")
    if upstream is not None:
        _point_at(upstream, configs / "llm.yaml")
    target = folder / "serve_config.yaml"
    target.write_text(
        yaml.safe_dump(
            _reduced(
                yaml.safe_load(serve_config.read_text(encoding="utf-8")), replicas, upstream is None
            )
        ),
        encoding="utf-8",
    )
    return target


def _point_at(upstream: str, file: Path) -> None:
    """Makes the upstream the only provider, with prices and the metered caller's limits."""
    llm = yaml.safe_load(file.read_text(encoding="utf-8"))
    llm["providers"] = {"openai": {"base_url": f"{upstream}/v1", "api_key_env": KEY_VARIABLE}}
    llm["models"] = {MODEL: {"provider": "openai", "name": "mock-model"}}
    llm["prices"] = {MODEL: {"input": 0.4, "cached_input": 0.1, "output": 1.6}}
    llm["limits"] |= {
        f"{kind}s": {subject: _HIGH}
        for kind, subject in zip(("agent", "microdao"), METERED_CALLER, strict=True)
    }
    file.write_text(yaml.safe_dump(llm), encoding="utf-8")


def _reduced(config: dict[str, Any], replicas: int, engine: bool) -> dict[str, Any]:  # noqa: FBT001
    """Keeps the options and the application `llm`, with so many replicas.

    The floor is added under the same options; with `engine` the application `engines`, and its
    engine behind HTTP in place of the floor.
    """
    by_name = {application["name"]: application for application in config["applications"]}
    (proxy,) = by_name["llm"]["deployments"]
    proxy.pop("autoscaling_config", None)
    proxy["num_replicas"] = replicas
    other = {
        "name": "bare" if engine else "floor",
        "route_prefix": BARE_PREFIX if engine else FLOOR_PREFIX,
        "import_path": f"benchmarks.{'engines.bare' if engine else 'llm.serve_floor'}:build",
        "args": {},
        "deployments": [{**proxy, "name": "Bare" if engine else "Floor"}],
    }
    kept = [by_name["engines"]] if engine else []
    return {**config, "applications": [*kept, by_name["llm"], other]}


async def _until(
    done: Callable[[], Awaitable[bool]],
    child: ChildProcess,
    seconds: float,
    log: Path | None = None,
) -> None:
    """Waits until `done`. Raises NotMeasured when the process ends or the time is up."""
    deadline = time.monotonic() + seconds
    while not await done():
        if child.pid is None:
            raise NotMeasured(f"{child.name} ended before it was ready{_last_line(log)}")
        if time.monotonic() > deadline:
            raise NotMeasured(f"{child.name} was not ready within {seconds:.0f} s{_last_line(log)}")
        await asyncio.sleep(0.2)


def _last_line(log: Path | None) -> str:
    """What the graph itself said last; Ray's processes write into the same log."""
    if log is None or not log.exists():
        return ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if "daarion." in line and "stopped in" not in line]
    return f": {(own or lines)[-1]}" if lines else ""


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _answering(*urls: str) -> bool:
    timeout = aiohttp.ClientTimeout(total=2)
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            for url in urls:
                async with session.get(url) as response:
                    if response.status != 200:
                        return False
    except (aiohttp.ClientError, TimeoutError):
        return False
    return True
