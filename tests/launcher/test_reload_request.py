"""`make reload` signals the graph that runs, and no other process."""

import io
import os
import subprocess
import sys

import pytest

from launcher.console import Console
from launcher.datadir import DataDir, Part
from launcher.reload_request import reload_graph


async def reload(data_dir, pid):
    data_dir.prepare()
    data_dir.write_parts([Part("Serve", pid, "x")])
    screen = io.StringIO()
    with data_dir.lock():
        return await reload_graph(data_dir, Console(screen)), screen.getvalue()


@pytest.mark.parametrize(
    "pid", [None, os.getppid(), 2**22 + 1], ids=["dead", "somebody else's", "gone"]
)
async def test_a_pid_that_is_not_the_running_graphs_is_reported_and_not_signalled(tmp_path, pid):
    status, screen = await reload(DataDir(tmp_path / "data"), pid)
    assert status == 1
    assert screen.startswith("the graph is not running at this moment")
    assert screen.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "status"), [("reloaded", 0), ("not reloaded: llm.yaml: models: too short", 1)]
)
async def test_the_graphs_answer_is_shown(tmp_path, answer, status):
    data_dir = DataDir(tmp_path / "data")
    data_dir.prepare()
    data_dir.log("serve").write_text("2026 daarion.serve_graph: reloaded\n")  # an older answer
    code = (
        "import signal, sys\n"
        "answer = '2026 daarion.serve_graph: ' + sys.argv[1]\n"
        "signal.signal(signal.SIGHUP, lambda *_: print(answer, flush=True))\n"
        "print('up', file=sys.stderr, flush=True)\nwhile True: signal.pause()"
    )
    with (
        data_dir.log("serve").open("a") as log,
        subprocess.Popen(
            [sys.executable, "-c", code, answer], stdout=log, stderr=subprocess.PIPE
        ) as graph,
    ):
        assert graph.stderr.readline() == b"up\n"
        assert await reload(data_dir, graph.pid) == (status, f"{answer}\n")
        graph.kill()


async def test_without_a_launcher_nothing_is_signalled(tmp_path):
    data_dir, screen = DataDir(tmp_path / "data"), io.StringIO()
    data_dir.prepare()
    data_dir.write_parts([Part("Serve", os.getpid(), "x")])
    assert await reload_graph(data_dir, Console(screen)) == 1
    assert "start it with `make run`" in screen.getvalue()
