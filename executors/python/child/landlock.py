"""Landlock: from here on this process sees only the given files. Layout: linux/landlock.h."""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from executors.python.child.kernel import call

# Numbers 444 to 446 are the same on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_QUERY = 1
PATH_BENEATH = 1
# Before this version truncating a file could not be forbidden.
MINIMUM_ABI = 3

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE, IOCTL_DEV = (
    1 << n for n in (0, 1, 2, 3, 5, 8, 14, 15)
)
_FS_RIGHTS = {3: 15, 4: 15, 5: 16}
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = READ_FILE | READ_DIR
# A flat folder, without folders, links, sockets and devices: easy to measure and to remove.
SCRATCH = READ | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE
SCOPED_ABSTRACT_SOCKETS_AND_SIGNALS = 3


def version() -> int:
    """Returns the kernel's Landlock version; 0 where there is none."""
    try:
        return call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_QUERY))
    except OSError:
        return 0


def confine(readable: list[str], writable: list[str], scratch: str | None) -> None:
    """Allows reading below `readable`, writing to the files `writable` and the folder `scratch`.

    Nothing else is allowed. Paths that do not exist are skipped. `no_new_privs` must be set. Raises
    OSError.
    """
    abi = version()
    if abi < MINIMUM_ABI:
        raise OSError(f"Landlock version {abi} is older than {MINIMUM_ABI}")
    handled = (1 << _FS_RIGHTS.get(abi, 16)) - 1
    ruleset = _create(abi, handled)
    for path in readable:
        _allow(ruleset, path, READ & handled)
    for path in writable:
        _allow(ruleset, path, (READ | WRITE_FILE) & handled)
    if scratch is not None:
        _allow(ruleset, scratch, SCRATCH & handled)
    call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)


def _create(abi: int, handled: int) -> int:
    attributes = struct.pack("QQQ", handled, 0, SCOPED_ABSTRACT_SOCKETS_AND_SIGNALS)
    size = 24 if abi >= 6 else 8
    return call(
        CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0)
    )


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        call(
            ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(PATH_BENEATH),
            ctypes.c_char_p(rule),
            ctypes.c_uint32(0),
        )
    finally:
        os.close(descriptor)
