"""A lock between processes, so that two builds never write the same folders."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from modelbuild.errors import ModelBuildError
from modelbuild.progress import Progress

WAIT_S = 1800.0
POLL_S = 0.2


@contextmanager
def exclusive(path: Path, progress: Progress, wait_s: float = WAIT_S) -> Iterator[None]:
    """Holds the lock file, which the kernel frees with its holder; waits at most `wait_s` for it.

    Raises:
        ModelBuildError: another process held it for all that time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if not _try_lock(file):
            progress.say("another build is running, waiting for it")
            deadline = time.monotonic() + wait_s
            while not _try_lock(file):
                if time.monotonic() >= deadline:
                    raise ModelBuildError(
                        f"another build has been running for over {wait_s:.0f} s; "
                        "end it and run again"
                    )
                time.sleep(POLL_S)
        yield


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
