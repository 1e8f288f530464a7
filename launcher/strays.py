"""Processes left by a dead child: found by parent, by environment marker or by log files.

Ray's daemons, its workers and HAProxy start processes of their own. The launcher is a subreaper, so
it becomes the parent of orphans; those of an earlier, killed launcher are found by their traces.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from launcher.instance import MARKER


def orphans(keep: Iterable[int], before: float | None = None) -> list[psutil.Process]:
    """Returns this process's descendants except those in `keep` and their descendants.

    `before` (seconds since the epoch) also excludes children started later, and their descendants.
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

    Some of Ray's processes overwrite their environment with a title: these are recognised by an
    open log file in `directory`.
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
    """Terminates all, kills the rest after `grace_s`; returns how many were killed. Blocks."""
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
    """Collects ended orphans, so that no zombies remain.

    It collects a zombie when it sees it a second time: by then no code here waits for its status.
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
