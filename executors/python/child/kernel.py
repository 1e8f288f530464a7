"""The few Linux calls that Python's library lacks, and the limits that a process sets itself."""

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
SECCOMP = {"x86_64": 317, "aarch64": 277}
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63
_SET_MODE_FILTER = 1
_INSTRUCTION_BYTES = 8
_CLONE_NEWNS = 0x20000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _ALL_BELOW, _PRIVATE = 1, 2, 4, 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: Any) -> int:
    """Makes a system call by number. Raises OSError."""
    return _checked(int(_libc.syscall(ctypes.c_long(number), *arguments)))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def prctl(option: int, value: int) -> None:
    """Changes an attribute of this process. Raises OSError."""
    _checked(
        _libc.prctl(
            option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)
        )
    )


def die_with_parent(parent: int | None) -> None:
    """Has the kernel kill this process when its parent dies. Ends at once if `parent` is gone."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def mount_scratch(folder: str, size: int, files: int) -> None:
    """Mounts a tmpfs of `size` bytes and `files` files as the working directory, and hides /proc.

    /proc would give access to the memory of the namespace's first process, which has no filter. The
    process needs its own user namespace and the capability to mount there, which `drop_privileges`
    gives up. Raises OSError.
    """
    _checked(_libc.unshare(_CLONE_NEWNS))
    _mount(None, "/", _ALL_BELOW | _PRIVATE, "")  # mounts below do not reach the parent's namespace
    _mount("tmpfs", folder, _NO_SUID | _NO_DEVICES, f"size={size},nr_inodes={files + 1},mode=700")
    _mount("tmpfs", "/proc", _NO_SUID | _NO_DEVICES | _READ_ONLY, "size=4096,nr_inodes=1")
    os.chdir(folder)


def _mount(kind: str | None, place: str, flags: int, options: str) -> None:
    name = None if kind is None else kind.encode()
    _checked(_libc.mount(name, place.encode(), name, ctypes.c_ulong(flags), options.encode()))


def filter_calls(program: bytes) -> None:
    """Loads a seccomp program into this process, irrevocably. Raises OSError.

    `no_new_privs` must be set.
    """
    code = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // _INSTRUCTION_BYTES, ctypes.addressof(code))
    number = SECCOMP[os.uname().machine]
    call(number, ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(0), ctypes.c_char_p(header))


def drop_privileges(*, visible: bool) -> None:
    """Drops every capability and the ways to regain one. Raises OSError.

    Other processes of the same user can inspect this one through /proc only if it is `visible`.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, int(visible))
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # not allowed to ordinary users, who have none; or past the last one
            break
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    call(CAPSET[os.uname().machine], ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def _prefer_for_killing() -> None:
    """Makes this process the first to be killed when the machine runs out of memory, if it can."""
    try:
        with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123  # a slow import
            score.write("1000")
    except OSError:
        return


def limit(limits: dict[str, int]) -> None:
    """Limits this process: `cpu_s`, `memory_bytes`, `file_bytes`, `open_files`."""
    _prefer_for_killing()
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
