"""The attacks that a tier must withstand on this host. Runs inside the sandbox like a tool."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

HIDDEN_FILES, HIDDEN_BYTES, HIDDEN_S = 3, 1 << 20, 8
SET_SIGNAL = 10
SET_PIPE_SIZE = 1031
CLOSE_RANGE, UNSHARE = 436, 2  # the same number on every architecture
# Calls with the same number on every architecture: pidfd_send_signal, io_uring_setup, open_tree,
# fsopen, pidfd_open, clone3, openat2, pidfd_getfd, process_madvise, memfd_secret.
NUMBERS = (424, 425, 428, 430, 434, 435, 437, 438, 440, 447)
# Calls with a wrapper in the C library.
NAMES = (
    "inotify_init1", "mount", "msgget", "personality", "process_vm_readv", "ptrace", "semget",
    "setns", "shmget", "splice", "tee", "unshare", "vmsplice",
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def probe(args: dict[str, Any], _context: dict[str, Any]) -> dict[str, bool]:
    """Returns for each attempt whether it was refused.

    `canary` is a file outside the sandbox, `neighbour` a path beside it.
    """
    canary, neighbour = args["canary"], args["neighbour"]
    pipe = os.pipe()[0]
    attempts: dict[str, Callable[[], Any]] = {
        "processes": os.fork,
        "own_tables": _take_own_table,
        "threads": threading.Thread(target=int).start,
        "programs": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
        "sockets": lambda: socket.socket(socket.AF_INET).close(),
        "local_sockets": lambda: socket.socket(socket.AF_UNIX).close(),
        "datagram_pairs": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "signals": lambda: os.kill(os.getppid(), 0),
        "owners": lambda: fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getppid()),
        "owner_signals": lambda: fcntl.fcntl(pipe, SET_SIGNAL, 0),
        "leases": lambda: fcntl.fcntl(
            os.open(__file__, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK
        ),
        "writing": lambda: _write(neighbour),
        "modes": lambda: os.chmod(canary, 0o600),  # noqa: PTH101
        "reading": lambda: _read(canary),
        "listing": lambda: os.listdir(os.path.dirname(canary)),  # noqa: PTH120, PTH208
        "neighbours": lambda: os.listdir("/proc/1"),  # noqa: PTH208
        "nameless_files": lambda: os.open(".", os.O_RDWR | os.O_TMPFILE),
        "preallocation": lambda: _reach(_libc.fallocate),
        "shared_memory": lambda: mmap.mmap(-1, mmap.PAGESIZE),
        "memory_files": lambda: os.memfd_create("memory"),
        "pipe_sizes": lambda: fcntl.fcntl(pipe, SET_PIPE_SIZE, 1 << 20),
        "socket_buffers": lambda: _any_socket().setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20
        ),
        "interfaces": _reach_any,
    }
    return {name: _refused(attempt) for name, attempt in attempts.items()}


def hide(_args: dict[str, Any], _context: dict[str, Any]) -> dict[str, bool]:
    """Stores more than the scratch folder may hold, in unlinked files, and waits to be killed."""
    try:
        for number in range(HIDDEN_FILES):
            descriptor = os.open(f"hidden-{number}", os.O_RDWR | os.O_CREAT)
            os.unlink(f"hidden-{number}")  # noqa: PTH108
            os.write(descriptor, bytes(HIDDEN_BYTES))
    except OSError:
        return {"hidden_files": True}
    time.sleep(HIDDEN_S)
    return {"hidden_files": False}


def _refused(attempt: Callable[[], Any]) -> bool:
    try:
        if attempt() == 0 and attempt is os.fork:
            os._exit(0)
    except (OSError, RuntimeError):
        return True
    return False


def _take_own_table() -> None:
    """Gives this thread its own descriptor table, where the runner would not look for files."""
    if _libc.syscall(CLOSE_RANGE, 1_000, 2_000, UNSHARE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _any_socket() -> socket.socket:
    """Returns an internet socket, or an end of a pair where no network is granted."""
    try:
        return socket.socket()
    except OSError:
        return socket.socketpair()[0]


def _reach_any() -> None:
    """Returns when one of the calls passes the filter; raises OSError when none does."""
    for reach in (
        *(getattr(_libc, name) for name in NAMES),
        *(_numbered(number) for number in NUMBERS),
    ):
        try:
            _reach(reach)
        except OSError:
            continue
        return
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _numbered(number: int) -> Callable[..., int]:
    return lambda *arguments: int(_libc.syscall(number, *arguments))


def _reach(function: Callable[..., int]) -> None:
    """Calls with invalid arguments; raises OSError if the error is one that the filter returns."""
    ctypes.set_errno(0)
    invalid = ctypes.c_long(-1)
    if function(*[invalid] * 6) == -1 and ctypes.get_errno() in {
        errno.EPERM,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
    }:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _write(path: str) -> None:
    with open(path, "x"):  # noqa: PTH123
        pass


def _read(path: str) -> None:
    with open(path):  # noqa: PTH123
        pass
