"""What is checked before anything is started; each refusal is one line that says what to do."""

from __future__ import annotations

import ctypes
import errno
import shutil
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg

from configs.stores import login_parameters
from contracts.errors import ConfigurationError
from launcher import nats
from launcher.errors import StartRefused
from launcher.ports import bind_error

# The whole graph with the default models takes about 5 GB; less than this ends in the kernel's out-of-memory killer.
MEMORY_NEEDED = 6 << 30
DISK_NEEDED = 2 << 30
# Without these nothing can start; the key is what to import, the value what to install.
PACKAGES = {
    "ray": "ray[serve]",
    "vllm": "vllm",
    "psycopg": "psycopg",
    "aiohttp": "aiohttp",
    "httpx2": "httpx2",
    "sentence_transformers": "sentence-transformers",
}
# HAProxy reaches the replicas of its own machine at localhost, and they listen where the ingress does.
HOSTS = ("127.0.0.1", "localhost", "0.0.0.0", "::")  # noqa: S104  # recognised here, not bound
CGROUP = Path("/sys/fs/cgroup")
# What vLLM and the sandbox of Python tools load and pip does not install.
LIBRARIES = {"libnuma.so.1": "libnuma1", "libseccomp.so.2": "libseccomp2"}


def check_port(host: str, port: int) -> None:
    """The ingress port is free, on an address that the graph can serve."""
    if host not in HOSTS:
        raise StartRefused(
            f"DAARION_HOST is {host}, but the graph can listen on {' or '.join(HOSTS)} alone: set one of these"
        )
    match bind_error(port, host):
        case None:
            return
        case errno.EADDRINUSE:
            raise StartRefused(
                f"port {port} on {host} is taken{_by_whom(port)}: stop what listens there, or set DAARION_PORT to a free port"
            )
        case errno.EACCES:
            raise StartRefused(
                f"port {port} needs more rights than this account has: set DAARION_PORT to a port above 1023"
            )
        case _:
            raise StartRefused(
                f"{host} is no address of this machine: set DAARION_HOST to another, or unset it for 127.0.0.1"
            )


def check_memory(available: int, needed: int = MEMORY_NEEDED) -> None:
    """`available` bytes are enough for the default models."""
    if available < needed:
        raise StartRefused(
            f"{_gigabytes(available)} of memory are available, the graph needs about {_gigabytes(needed)}: "
            "close something, or run it on a larger machine"
        )


def check_disk(free: int, where: Path, needed: int = DISK_NEEDED) -> None:
    """`free` bytes under `where` are enough for the stores and logs."""
    if free < needed:
        raise StartRefused(
            f"{_gigabytes(free)} are free under {where}, {_gigabytes(needed)} are needed: "
            "make room, or set DAARION_DATA_DIR to another disk"
        )


def check_packages(packages: dict[str, str] | None = None) -> None:
    """Everything that the graph imports is installed."""
    wanted = PACKAGES if packages is None else packages
    missing = [name for module, name in wanted.items() if find_spec(module) is None]
    if missing:
        raise StartRefused(
            f"not installed for {sys.executable}: {', '.join(missing)}: run `make run`, which installs from the lock file"
        )


def check_libraries(libraries: dict[str, str] | None = None) -> None:
    """The system's libraries that the packages load are there."""
    for file, package in (LIBRARIES if libraries is None else libraries).items():
        try:
            ctypes.CDLL(file)
        except OSError:
            raise StartRefused(
                f"the system's library {file} is missing: install it (Debian, Ubuntu: apt install {package})"
            ) from None


def check_files(paths: Iterable[Path]) -> None:
    """Every configuration file can be read."""
    for path in paths:
        try:
            path.read_text()
        except UnicodeDecodeError as error:
            raise StartRefused(f"the configuration file {path} is not UTF-8 text") from error
        except OSError as error:
            raise StartRefused(
                f"the configuration file {path} cannot be read ({error.strerror}): restore it, or set DAARION_CONFIG_DIR"
            ) from error


def available_memory() -> int:
    """Returns what can be had without swapping, in bytes: by the kernel's estimate, and by the limit of the container around it."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = (
            (CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
        return min(available, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit (`max`)
        return available


def free_disk(path: Path) -> int:
    """Returns the bytes an ordinary user can still write under `path`, which need not exist yet."""
    there = next((each for each in (path, *path.parents) if each.is_dir()), Path("/"))
    return shutil.disk_usage(there).free


async def check_database(url: str) -> None:
    """The external PostgreSQL takes a login."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            **{"connect_timeout": 5, **login_parameters(url)}
        )
    except (psycopg.OperationalError, psycopg.ProgrammingError, ConfigurationError) as error:
        if "authentication method requirement" in str(error):  # it comes without a SQLSTATE
            raise StartRefused(
                "the server of DATABASE_URL does not use SCRAM for this login: set scram-sha-256 in its pg_hba.conf, or, if you "
                "trust whoever listens there, name its method in the URL (`?require_auth=md5`, `password`, `none` …)"
            ) from error
        raise StartRefused(
            "DATABASE_URL is set, but no login is possible there: correct it, or unset it to have PostgreSQL started here"
        ) from error
    await connection.close()


async def check_nats(url: str) -> None:
    """The external NATS server greets."""
    first = urlsplit(url.split(",", maxsplit=1)[0].strip())
    try:
        host, port = first.hostname, first.port or 4222
    except ValueError:
        host, port = None, 0
    if host is None or not await nats.answers(host, port, timeout_s=5.0):
        raise StartRefused(
            "NATS_URL is set, but no NATS server answers there: correct it, or unset it to have NATS started here"
        )


def _by_whom(port: int) -> str:
    """Names the listener where the system tells it (own processes, or root)."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.AccessDenied, OSError):
        return ""
    for connection in connections:
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == port
            and connection.pid
        ):
            try:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
            except psutil.Error:
                return ""
    return ""


def _gigabytes(count: int) -> str:
    return f"{count / (1 << 30):.1f} GB"
