"""The few Linux calls that Python's library lacks, and the limits that a process takes upon itself."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: Any) -> int:
    """Makes a system call by number. Raises OSError."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def prctl(option: int, value: int) -> None:
    """Changes an attribute of this process. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def die_with_parent(parent: int | None) -> None:
    """Has the kernel kill this process when its parent dies; `parent` is the process that must still be there."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def drop_privileges() -> None:
    """Gives up every capability for good, and the ways to get one back. Raises OSError."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)  # other processes of this user cannot read its memory
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # an ordinary user may not, and needs not; or past the last one
            break
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    call(CAPSET[os.uname().machine], ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def _volunteer() -> None:
    """If the machine runs out of memory, this process goes first. Without `/proc` it takes its chance."""
    try:
        with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123  # pathlib costs more than the whole set-up
            score.write("1000")
    except OSError:
        return


def limit(limits: dict[str, int]) -> None:
    """Takes the limits upon this process: `cpu_s`, `memory_bytes`, `file_bytes`, `open_files`."""
    _volunteer()
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_AS: limits["memory_bytes"],
    }
    for kind, wanted in bounds.items():
        _, ceiling = resource.getrlimit(kind)
        bound = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
        resource.setrlimit(kind, (bound, bound))
