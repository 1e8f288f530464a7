"""Processes that a graph left: Ray's daemons, its workers and HAProxy start processes of their own.

The launcher becomes the parent of orphans, and so collects them when they have ended.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress

import psutil

from launcher.instance import MARKER, Instance


def left_by(instance: Instance) -> list[psutil.Process]:
    """Returns every process of the instance, with its descendants.

    Some of Ray's processes overwrite their environment with a title: these are recognised by an
    open log file in the instance's directory.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and (
                process.environ().get(MARKER) == instance.identity
                or any(
                    file.mode != "r" and instance.holds(file.path) for file in process.open_files()
                )
            ):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(found.values())


def end(processes: list[psutil.Process], grace_s: float) -> None:
    """Terminates all, and kills the rest after `grace_s`. Blocks."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def orphans(keep: Collection[int | None]) -> list[psutil.Process]:
    """Returns the launcher's children but those in `keep`, which it has started itself."""
    return [child for child in psutil.Process().children() if child.pid not in keep]


def collect_ended(processes: list[psutil.Process]) -> None:
    """Collects those that have ended, so that no zombies remain; does not wait."""
    psutil.wait_procs(processes, timeout=0)
