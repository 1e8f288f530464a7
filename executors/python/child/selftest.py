"""What a tier must withstand on this very host before it is offered. Runs inside the sandbox like a tool."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any


def probe(args: dict[str, Any], _context: dict[str, Any]) -> dict[str, bool]:
    """Tries what must fail. `canary` is a file outside the sandbox, `neighbour` a path beside it.

    Returns for each attempt whether it was refused.
    """
    canary, neighbour = args["canary"], args["neighbour"]
    attempts: dict[str, Callable[[], Any]] = {
        "processes": os.fork,
        "threads": threading.Thread(target=int).start,
        "programs": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
        "sockets": lambda: socket.socket(socket.AF_INET).close(),
        "local_sockets": lambda: socket.socket(socket.AF_UNIX).close(),
        "signals": lambda: os.kill(os.getppid(), 0),
        "writing": lambda: _write(neighbour),
        "modes": lambda: os.chmod(canary, 0o600),  # noqa: PTH101
        "reading": lambda: _read(canary),
        "listing": lambda: os.listdir(os.path.dirname(canary)),  # noqa: PTH120, PTH208
    }
    return {name: _refused(attempt) for name, attempt in attempts.items()}


def _refused(attempt: Callable[[], Any]) -> bool:
    try:
        if attempt() == 0 and attempt is os.fork:
            os._exit(0)
    except (OSError, RuntimeError):
        return True
    return False


def _write(path: str) -> None:
    with open(path, "x"):  # noqa: PTH123
        pass


def _read(path: str) -> None:
    with open(path):  # noqa: PTH123
        pass
