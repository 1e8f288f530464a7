"""Memory-mapped files that one process owns at a time, by a lock on the file.

The kernel frees the lock when the owner dies.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping
from pathlib import Path


def create_locked(
    path: Path, draft: Path, size: int, content: Mapping[int, bytes]
) -> tuple[int, mmap.mmap]:
    """Creates a file of `size` bytes with `content` by offset, readable by its owner only.

    Returns the locked descriptor and the mapping. The space is reserved now, because a store into a
    hole on a full disk would kill the process. The file is created as `draft` and renamed once it
    is locked, because other processes look for the final name.

    Raises:
        OSError: the directory is not writable or the disk is full.
    """
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(descriptor, 0, size)
        for offset, data in content.items():
            os.pwrite(descriptor, data, offset)
        mapping = mmap.mmap(descriptor, size)
        draft.rename(path)
    except BaseException:
        os.close(descriptor)
        draft.unlink(missing_ok=True)
        raise
    return descriptor, mapping


def lock_abandoned(path: Path) -> tuple[int, int] | None:
    """Locks a file whose owner is gone; returns its descriptor and size.

    Returns None while the file is owned, and when it was just deleted.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
    except BlockingIOError:
        found = None
    except BaseException:
        os.close(descriptor)
        raise
    if found is None or found.st_nlink == 0:  # another process has just drained and deleted it
        os.close(descriptor)
        return None
    return descriptor, found.st_size
