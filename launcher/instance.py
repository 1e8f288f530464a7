"""What separates one graph on this machine from another: marker, short directory, ports.

By marker and directory its processes are found: Ray's daemons, its workers and HAProxy start others
themselves, and may outlive the graph.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from launcher.datadir import write_private
from launcher.ports import free_ports, free_range

MARKER = "DAARION_INSTANCE"
# Not TMPDIR, which may be long: sockets lie two levels below, and their paths have 107 bytes.
_SHORT = Path("/tmp")  # noqa: S108  # mkdtemp creates an unguessable 0700 folder
_PREFIX = "daarion-"
_SLOT = 100
# Below the range from which the kernel takes the ports of outgoing connections.
_HTTP_PORTS = (30000, 31999)
_GRPC_PORTS = (28000, 29999)


@dataclass(frozen=True)
class Instance:
    """One graph.

    `identity` is in the environment of all its processes (as `MARKER`); `directory` has a short
    path and mode 0700 and is removed with the instance; port ranges are inclusive.
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
        """Creates the directory and picks free ports, so that graphs can run side by side."""
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

    def processes(self) -> list[psutil.Process]:
        """Returns every process of the instance, with its descendants.

        Some of Ray's processes overwrite their environment with a title: these are recognised by an
        open log file in the directory.
        """
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and (
                    process.environ().get(MARKER) == self.identity
                    or any(
                        file.mode != "r" and Path(file.path).is_relative_to(self.directory)
                        for file in process.open_files()
                    )
                ):
                    family = (process, *process.children(recursive=True))
                    found |= {each.pid: each for each in family}
        return list(found.values())

    def remove(self) -> None:
        """Removes the directory; refuses any other path than `create` makes."""
        if self.directory.parent == _SHORT and self.directory.name.startswith(_PREFIX):
            shutil.rmtree(self.directory, ignore_errors=True)

    def save(self, file: Path) -> None:
        """Records the instance, so that the next start can clean up after a killed one."""
        write_private(file, json.dumps(asdict(self), default=str))


def leftover(file: Path) -> Instance | None:
    """Returns the instance recorded in `file`, if any."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        recorded = json.loads(file.read_text())
        return Instance(**recorded | {"directory": Path(recorded["directory"])})
    return None


def end_processes(processes: list[psutil.Process], grace_s: float) -> None:
    """Terminates all, and kills the rest after `grace_s`. Blocks."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
