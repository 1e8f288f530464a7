"""Processes that a graph left: Ray's daemons, its workers and HAProxy start others themselves."""

from __future__ import annotations

import os
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
