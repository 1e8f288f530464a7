"""Files that several processes share by turns: each is mapped into memory by who holds its lock, which the kernel frees with its owner."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping
from pathlib import Path


def create_locked(
    path: Path, draft: Path, size: int, content: Mapping[int, bytes]
) -> tuple[int, mmap.mmap]:
    """Makes a file of `size` bytes with `content` by offset, readable by the owner alone; returns its locked descriptor and its mapping.

    The space is reserved now: a store into a hole of a full disk would kill the process. It is made as `draft`, because others look
    for the final name, which appears locked.

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
    """Locks a file whose owner is gone; returns its descriptor and its size, or None while it is owned or where it was just deleted.

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
    if found is None or found.st_nlink == 0:  # another process has just done with it and deleted it
        os.close(descriptor)
        return None
    return descriptor, found.st_size
