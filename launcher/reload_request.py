"""`make reload`: asks the running graph to read its configuration again, and reports the result."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from launcher import state
from launcher.console import Console
from launcher.datadir import DataDir, DataDirLock

DONE, FAILED = 0, 1
_ANSWER_S = 90.0
_POLL_S = 0.1
_AWAY = (
    "the graph is not running at this moment; its launcher restarts it, with the configuration "
    "as it is then"
)
# The graph writes these into its log after a reload.
_RELOADED, _NOT_RELOADED = "daarion.serve_graph: reloaded", "daarion.serve_graph: not reloaded: "


async def reload_graph(data_dir: DataDir, console: Console) -> int:
    """Sends SIGHUP to the running graph and waits for its answer; returns 0, or 1 after printing
    the reason.
    """
    launcher = DataDirLock(data_dir).holder()
    parts = state.read_parts(data_dir) if launcher is not None else []
    serve = next((part for part in parts if part.name == "Serve"), None)
    if serve is None:
        console.plain(f"no graph is running on {data_dir.root}: start it with `make run`")
        return FAILED
    log = data_dir.log("serve")
    read = _size(log)
    if serve.pid is None or not _ask(serve.pid, launcher):
        console.plain(_AWAY)
        return FAILED
    until = time.monotonic() + _ANSWER_S
    while time.monotonic() < until:
        await asyncio.sleep(_POLL_S)
        answer = await asyncio.to_thread(_answer, log, read)
        if answer is not None:
            console.plain(answer)
            return DONE if answer.startswith("reloaded") else FAILED
        if not _is_child(serve.pid, launcher):
            console.plain(_AWAY)
            return FAILED
    console.plain(
        f"asked the graph to read its configuration again; it has not answered yet: see {log}"
    )
    return FAILED


def _ask(pid: int, launcher: int | None) -> bool:
    """Signals that process if it still is the launcher's child."""
    with suppress(ProcessLookupError):
        if _is_child(pid, launcher):
            os.kill(pid, signal.SIGHUP)
            return True
    return False


def _is_child(pid: int, launcher: int | None) -> bool:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return bool(process.ppid() == launcher and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _size(log: Path) -> int:
    with suppress(OSError):
        return log.stat().st_size
    return 0


def _answer(log: Path, read: int) -> str | None:
    """Returns the first answer in the log after `read` bytes; a log truncated since is read from
    its start.
    """
    try:
        with log.open("rb") as file:
            file.seek(read if _size(log) >= read else 0)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        for mark in (_NOT_RELOADED, _RELOADED):
            if mark in line:
                return line[line.index(mark) + len("daarion.serve_graph: ") :]
    return None
