"""`make gpu-check` without a GPU, against the graph of the CPU profile."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.graph, pytest.mark.timeout(300, func_only=True)]

ASKED = (
    "health",
    "whole answer",
    "stream",
    "embeddings",
    "memory store",
    "memory query",
    "tool",
    "agent",
)


def test_each_thing_of_a_ready_graph_is_as_it_should_be(graph):
    graph.wait_ready()
    command = [sys.executable, "-m", "ops.gpu_check", "--url", graph.url, "--without-gpu"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DAARION_")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=clean)
    rows = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert [row[:13].strip() for row in rows] == list(ASKED)
    assert all(row[14:21].strip() == "ok" for row in rows)
    assert "the reply names the project" in rows[-1][22:70]
