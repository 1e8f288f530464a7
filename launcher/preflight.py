"""Checks before anything is started; each refusal is one line that says what to do."""

from __future__ import annotations

import ctypes
import errno
import shutil
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
from pydantic import BaseModel

from configs.access import contents_of, load_access
from configs.agents import load_blueprints
from configs.engines.config import DEFAULT_FOLDER, EnginesSettings
from configs.engines.model_source import find_model
from configs.environment import Environment
from configs.llm.config import LLMSettings
from configs.memory import MemorySettings
from configs.stores import login_parameters, why_refused
from configs.tools import ToolsSettings
from configs.yaml_files import load_yaml
from contracts.errors import ConfigurationError
from launcher.errors import StartRefused
from launcher.nats import greets
from launcher.ports import LOOPBACK, bind_error

# The graph with the default models takes about 5 GB; with less the kernel kills processes.
MEMORY_NEEDED = 6 << 30
DISK_NEEDED = 2 << 30
# HAProxy reaches the replicas at localhost, and they listen on the host of the ingress.
HOSTS = ("127.0.0.1", "localhost", "0.0.0.0", "::")  # noqa: S104  # recognised here, not bound
CGROUP = Path("/sys/fs/cgroup")
# What vLLM and the sandbox of Python tools load and pip does not install, and Debian's packages.
LIBRARIES = {"libnuma.so.1": "libnuma1", "libseccomp.so.2": "libseccomp2"}
_MODELS: dict[str, type[BaseModel]] = {
    "llm.yaml": LLMSettings,
    "engines.yaml": EnginesSettings,
    "engines.gpu.yaml": EnginesSettings,
    "memory.yaml": MemorySettings,
    "tools.yaml": ToolsSettings,
}
_OPTIONAL = "engines.gpu.yaml"
"""Only the GPU profile reads it."""


def check_graph(environment: Environment, memory_needed: int) -> None:
    """Checks what the graph needs beside the stores.

    Raises:
        ConfigurationError: a busy port, a missing library, too little memory, a wrong file.
    """
    check_port(environment.host, environment.port)
    check_port(LOOPBACK, environment.metrics_port, "DAARION_METRICS_PORT")
    check_libraries()
    check_memory(available_memory(), memory_needed)
    check_settings(environment)


async def check_stores(environment: Environment) -> None:
    """Checks the stores that run elsewhere. Raises StartRefused: one of them does not answer."""
    if environment.database_url is not None:
        await check_database(environment.database_url)
    if environment.nats_url is not None:
        await check_nats(environment.nats_url)


def check_port(host: str, port: int, variable: str = "DAARION_PORT") -> None:
    """Refuses a busy port, and an address that the graph cannot serve."""
    if host not in HOSTS:
        raise StartRefused(
            f"DAARION_HOST is {host}, but the graph can only listen on {' or '.join(HOSTS)}: "
            "set one of these"
        )
    match bind_error(port, host):
        case None:
            return
        case errno.EADDRINUSE:
            raise StartRefused(
                f"port {port} on {host} is taken{_by_whom(port)}: "
                f"stop what listens there, or set {variable} to a free port"
            )
        case errno.EACCES:
            raise StartRefused(
                f"port {port} needs more rights than this account has: "
                f"set {variable} to a port above 1023"
            )
        case _:
            raise StartRefused(
                f"{host} is no address of this machine: "
                "set DAARION_HOST to another, or unset it for 127.0.0.1"
            )


def check_memory(available: int, needed: int = MEMORY_NEEDED) -> None:
    """Refuses less available memory (bytes) than the default models need."""
    if available < needed:
        raise StartRefused(
            f"{_gigabytes(available)} of memory are available, "
            f"the graph needs about {_gigabytes(needed)}: "
            "close something, or run it on a larger machine"
        )


def check_disk(free: int, where: Path, needed: int = DISK_NEEDED) -> None:
    """Refuses less free disk (bytes) under `where` than stores and logs need."""
    if free < needed:
        raise StartRefused(
            f"{_gigabytes(free)} are free under {where}, {_gigabytes(needed)} are needed: "
            "make room, or set DAARION_DATA_DIR to another disk"
        )


def check_libraries(libraries: dict[str, str] | None = None) -> None:
    """Refuses to start without a system library that a package loads."""
    for file, package in (LIBRARIES if libraries is None else libraries).items():
        try:
            ctypes.CDLL(file)
        except OSError:
            raise StartRefused(
                f"the system's library {file} is missing: "
                f"install it (Debian, Ubuntu: apt install {package})"
            ) from None


def check_settings(environment: Environment) -> None:
    """Validates all files; the graph checks what only a deployment knows, such as adapters.

    Raises:
        ConfigurationError: names file, key and reason.
    """
    for name, model in _MODELS.items():
        file = environment.config_dir / name
        if name != _OPTIONAL or file.exists():
            load_yaml(file, model)
    contents_of(load_access(environment.config_dir), environment.secret)
    load_blueprints(environment.config_dir)
    if environment.model is not None:  # the engine would fail a minute later
        find_model(environment.model, DEFAULT_FOLDER, "DAARION_MODEL", environment)


def available_memory() -> int:
    """Returns the bytes available without swapping, within the container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = (
            (CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
        return min(available, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or `max`: no limit
        return available


def free_disk(path: Path) -> int:
    """Returns the bytes an ordinary user can write under `path`, which need not exist."""
    there = next((each for each in (path, *path.parents) if each.is_dir()), Path("/"))
    return shutil.disk_usage(there).free


async def check_database(url: str) -> None:
    """Refuses a PostgreSQL elsewhere that accepts no login."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            **{"connect_timeout": 5, **login_parameters(url)}
        )
    except (psycopg.OperationalError, psycopg.ProgrammingError, ConfigurationError) as error:
        raise StartRefused(
            why_refused(error)
            or "DATABASE_URL is set, but no login is possible there: "
            "correct it, or unset it to have PostgreSQL started here"
        ) from error
    await connection.close()


async def check_nats(url: str) -> None:
    """Refuses a NATS server elsewhere that does not greet."""
    first = urlsplit(url.split(",", maxsplit=1)[0].strip())
    try:
        host, port = first.hostname, first.port or 4222
    except ValueError:
        host, port = None, 0
    if host is None or not await greets(host, port, timeout_s=5.0):
        raise StartRefused(
            "NATS_URL is set, but no NATS server answers there: "
            "correct it, or unset it to have NATS started here"
        )


def _by_whom(port: int) -> str:
    """Names the listener if the system shows it (own processes, or to root)."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid or 0).name()})"
    return ""


def _gigabytes(count: int) -> str:
    return f"{count / (1 << 30):.1f} GB"
