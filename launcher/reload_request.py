"""`make reload`: asks the running graph to read its configuration again, and reports the result."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from launcher.console import Console
from launcher.datadir import DataDir

DONE, FAILED = 0, 1
_ANSWER_S = 90.0
_POLL_S = 0.1
_AWAY = (
    "the graph is not running at this moment; its launcher restarts it, with the configuration "
    "as it is then"
)
# The graph writes one of these into its log after a reload.
_ANSWER = re.compile(r"daarion\.serve_graph: ((?:not )?reloaded.*)\n")


async def reload_graph(data_dir: DataDir, console: Console) -> int:
    """Sends SIGHUP to the running graph and waits for its answer; returns 0, or 1 after printing
    the reason.
    """
    serve = data_dir.read_parts().get("Serve")
    if serve is None:
        console.plain(f"no graph is running on {data_dir.root}: start it with `make run`")
        return FAILED
    answer = _AWAY
    with suppress(psutil.Error):
        graph = psutil.Process(serve.pid or 0)  # no process has the id 0
        if graph.ppid() == data_dir.holder():
            answer = await _ask(graph, data_dir.log("serve"))
    console.plain(answer)
    return DONE if answer.startswith("reloaded") else FAILED


async def _ask(graph: psutil.Process, log: Path) -> str:
    """Returns the graph's answer. Raises psutil.NoSuchProcess when the graph ends before."""
    read = (await asyncio.to_thread(log.stat)).st_size
    graph.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + _ANSWER_S
    while time.monotonic() < deadline:
        await asyncio.sleep(_POLL_S)
        if answer := await asyncio.to_thread(_find_answer, log, read):
            return answer
        if graph.status() == psutil.STATUS_ZOMBIE:
            return _AWAY
    return f"asked the graph to read its configuration again; it has not answered yet: see {log}"


def _find_answer(log: Path, read: int) -> str:
    """Returns the first answer in the log after `read` bytes; a log truncated since is read from
    its start.
    """
    with log.open("rb") as file:
        file.seek(read if log.stat().st_size >= read else 0)
        found = _ANSWER.search(file.read().decode(errors="replace"))
    return found[1] if found else ""
