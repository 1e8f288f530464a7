"""Processes that a dead child left behind: found by parentage, by the marker in their environment or by their log files, and ended by pid.

Ray's daemons, its workers and HAProxy start processes of their own. As a subreaper the launcher becomes the parent of what is
orphaned; what an earlier launcher left when it was killed is known by its traces alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from launcher.instance import MARKER


def orphans(keep: Iterable[int], before: float | None = None) -> list[psutil.Process]:
    """Returns this process's descendants except those in `keep` and below them.

    `before` (seconds since the epoch) leaves out children of ours that were born later, and what is below them.
    """
    kept = set(keep)
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.pid in kept or (before is not None and child.create_time() >= before):
                continue
            found += [child, *child.children(recursive=True)]
    return found


def marked(identity: str, directory: Path) -> list[psutil.Process]:
    """Returns every process of the instance `identity`, with its descendants.

    Some of Ray's processes overwrite their environment with a title: those are known by a log file open in `directory`.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and (
                process.environ().get(MARKER) == identity or _writes_to(process, directory)
            ):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(found.values())


def _writes_to(process: psutil.Process, directory: Path) -> bool:
    return any(
        file.mode != "r" and Path(file.path).is_relative_to(directory)
        for file in process.open_files()
    )


def end(processes: list[psutil.Process], grace_s: float) -> int:
    """Asks all to end, kills what is left after `grace_s`; returns how many had to be killed. Blocks: call it in a thread."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return len(alive)


class Reaper:
    """Collects orphans that ended, so that they do not stay as zombies.

    A zombie is collected at the second sight of it: by then it is none whose exit status somebody here is about to ask for.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def collect(self) -> None:
        zombies: set[int] = set()
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.status() == psutil.STATUS_ZOMBIE:
                    zombies.add(child.pid)
        for pid in zombies & self._seen:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._seen = zombies - self._seen
