"""Runs a command in a Linux network namespace with loopback alone.

Use: `python -m tests.support.graph.offline <command …>`. The suite of the real graph runs in it,
which shows that it needs no network. On a host without namespaces the command runs with the
network, after a message, and the suite skips its check of the interfaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

VARIABLE = "DAARION_TEST_OFFLINE"

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def enter() -> None:
    """Moves this process to a network of loopback alone. Raises OSError where that is forbidden."""
    user, group = os.getuid(), os.getgid()
    flags = _CLONE_NEWNET if user == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _loopback_up()


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | _IFF_UP))


def main(command: list[str]) -> int:
    """Replaces this process by the command."""
    try:
        enter()
        os.environ[VARIABLE] = "1"
    except OSError as error:
        sys.stderr.write(
            f"[offline] this host allows no network namespace ({error.strerror}): "
            "running with its network\n"
        )
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
