"""Free TCP ports on this machine, remembered between starts."""

from __future__ import annotations

import errno
import json
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from launcher.datadir import write_private

LOOPBACK = "127.0.0.1"


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could bind `host`:`port` right now."""
    return bind_error(port, host) is None


def bind_error(port: int, host: str) -> int | None:
    """Returns the `errno` with which a server would fail to bind `host`:`port`, or None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier run that are still closing do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno or errno.EADDRNOTAVAIL
    return None


def free_ports(count: int) -> list[int]:
    """Returns `count` different ports that are free at the moment of the call."""
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            for _ in range(count)
        ]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def free_range(first: int, last: int, size: int, start: int = 0) -> tuple[int, int]:
    """Returns the bounds (inclusive) of `size` neighbouring free ports within [first, last].

    `start` is the slot to try first, so that two instances on one machine seldom try the same one.
    If every slot has a busy port, returns the first one tried: its user skips busy ports.
    """
    slots = (last - first + 1) // size
    bounds = [
        (first + size * ((start + n) % slots), first + size * ((start + n) % slots) + size - 1)
        for n in range(slots)
    ]
    return next(
        (slot for slot in bounds if all(is_free(port) for port in range(slot[0], slot[1] + 1))),
        bounds[0],
    )


class StickyPorts:
    """Ports by name in a JSON file, reused while they are free: URLs stay stable between starts."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def take(self, name: str) -> int:
        """Returns the recorded port of `name` if it is free, else records another one."""
        known = self._read()
        port = known.get(name)
        if port is None or not is_free(port):
            known[name] = port = free_ports(1)[0]
            write_private(self._file, json.dumps(known, indent=1))
        return port

    def _read(self) -> dict[str, int]:
        with suppress(OSError, ValueError):
            content = json.loads(self._file.read_text())
            if isinstance(content, dict):
                return {
                    name: port
                    for name, port in content.items()
                    if isinstance(port, int) and 0 < port < 65536
                }
        return {}
