"""Free TCP ports on this machine, remembered between starts."""

from __future__ import annotations

import errno
import json
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

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
    starts = [first + size * ((start + n) % slots) for n in range(slots)]
    free = (each for each in starts if all(is_free(port) for port in range(each, each + size)))
    chosen = next(free, starts[0])
    return chosen, chosen + size - 1


def sticky_port(file: Path, name: str) -> int:
    """Returns the port recorded for `name` in a JSON file if it is free, else records another one:
    URLs stay stable between starts.
    """
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = dict(json.loads(file.read_text()))
    port = known.get(name)
    if not (isinstance(port, int) and 0 < port < 65536 and is_free(port)):
        known[name] = port = free_ports(1)[0]
        write_private(file, json.dumps(known, indent=1))
    return port
