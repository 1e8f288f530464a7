"""Files that one process owns at a time, by a lock that the kernel frees when the owner dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def create_locked(path: Path) -> int:
    """Creates an empty file, readable by its owner only; returns its locked descriptor.

    Raises:
        OSError: it exists, or the directory is not writable.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # before it was locked, another process took it for a dead one's


def lock_abandoned(path: Path) -> int | None:
    """Locks a file whose owner is gone; returns its descriptor.

    Returns None while the file is owned, and when it was just deleted.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)  # owned, or another process has just drained and deleted it
    return None
