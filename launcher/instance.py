"""What makes one graph on this machine distinct from another: its marker, its short directory and its ports."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.datadir import write_private
from launcher.ports import free_ports, free_range

MARKER = "DAARION_INSTANCE"
# Sockets lie two levels below, and a socket's path holds at most 107 bytes: no TMPDIR, it may be long.
_SHORT = Path("/tmp")  # noqa: S108  # mkdtemp makes an unguessable 0700 folder in it
_PREFIX = "daarion-"
_SLOT = 100
# Below the range from which the kernel takes the ports of outgoing connections.
_HTTP_PORTS = (30000, 31999)
_GRPC_PORTS = (28000, 29999)


@dataclass(frozen=True)
class Instance:
    """One graph.

    `identity` stands in the environment of all its processes (under `MARKER`), `directory` is short, 0700 and removed with it;
    ranges of ports are inclusive.
    """

    identity: str
    directory: Path
    stats_port: int
    metrics_port: int
    fallback_http_port: int
    fallback_grpc_port: int
    http_ports: tuple[int, int]
    grpc_ports: tuple[int, int]

    @classmethod
    def create(cls) -> Instance:
        """Makes the directory and picks ports that are free now, so that several graphs live side by side."""
        stats_port, metrics_port, fallback_http_port, fallback_grpc_port = free_ports(4)
        start = secrets.randbelow(20)
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_SHORT))
        (directory / "tmp").mkdir(mode=0o700)
        return cls(
            identity=secrets.token_hex(16),
            directory=directory,
            stats_port=stats_port,
            metrics_port=metrics_port,
            fallback_http_port=fallback_http_port,
            fallback_grpc_port=fallback_grpc_port,
            http_ports=free_range(*_HTTP_PORTS, _SLOT, start),
            grpc_ports=free_range(*_GRPC_PORTS, _SLOT, start),
        )

    def remove(self) -> None:
        """Removes its directory."""
        remove_directory(self.directory)


def save(instance: Instance, file: Path) -> None:
    """Notes the instance, so that the next start can clean up after one that was killed."""
    write_private(file, json.dumps(asdict(instance) | {"directory": str(instance.directory)}))


def leftover(file: Path) -> tuple[str, Path] | None:
    """Returns marker and directory of the instance noted in `file`, or None."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(file.read_text())
        return str(noted["identity"]), Path(noted["directory"])
    return None


def remove_directory(directory: Path) -> None:
    """Removes an instance's directory; refuses any other path."""
    if directory.parent == _SHORT and directory.name.startswith(_PREFIX):
        shutil.rmtree(directory, ignore_errors=True)
