"""`make gpu-check` says in one line what is not as it should be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from ops.gpu_check import cards, command, failed, of_the_graph

ROOT = Path(__file__).resolve().parents[2]
RIGHT = {
    "/health": {"status": "ready"},
    "/internal/llm/proxy": {
        "provider": "local",
        "content": "one, two",
        "usage": {"completion_tokens": 4},
    },
    "/internal/llm/v1/embeddings": {"data": [{"embedding": [0.6, 0.8]}]},
    "/internal/agent-memory/store": {"indexed": True},
    "/internal/agent-memory/query": {"items": [{}]},
    "/internal/tools/call": {"ok": True},
}
PIECES = [{"delta": "one"}, {"delta": ", two"}, {"usage": {"completion_tokens": 400}}]


def reasons(*, pieces=PIECES, fast=True, status=200, **wrong):
    """The reasons about a graph whose answers are right but for `wrong`, by the path's end."""

    def answer(request):
        path = request.url.path
        if path.endswith("/stream"):
            return httpx2.Response(200, text="".join(f"data: {json.dumps(x)}\n\n" for x in pieces))
        given = wrong.get(path.rpartition("/")[2], RIGHT[path])
        return httpx2.Response(200 if given is RIGHT[path] else status, json=given)

    client = httpx2.Client(base_url="http://graph", transport=httpx2.MockTransport(answer))
    return failed(of_the_graph(client, "http://graph", fast=fast)[:-1])


def test_a_graph_as_it_should_be_has_no_reasons(capsys):
    assert reasons() == []
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 7
    assert all(" ok " in row for row in rows)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"health": {"status": "degraded"}}, "health: degraded; it should be: ready"),
        (
            {"proxy": RIGHT["/internal/llm/proxy"] | {"provider": "openai"}},
            "whole answer: 4 tokens by openai",
        ),
        ({"embeddings": {"data": [{"embedding": [3, 4]}]}}, "embeddings: 2 numbers, norm 5.00"),
        ({"store": {"indexed": False}}, "memory store: indexed False"),
        ({"query": {"items": [{}], "degraded": ["dense"]}}, "1 found, degraded ['dense']"),
        ({"query": {"items": []}}, "memory query: 0 found"),
        (
            {"call": {"ok": False, "error": {"message": "away"}}},
            "tool: ok False {'message': 'away'}",
        ),
        ({"pieces": PIECES[:2]}, "stream: 200, ended after 2 pieces of text"),
        ({"pieces": PIECES[2:]}, "stream: 200, ended after 0 pieces of text"),
        ({"proxy": {}}, "whole answer: KeyError: 'usage'"),
        ({"proxy": {"error": "a\nb"}, "status": 503}, 'whole answer: 503 {"error":"a\\nb"}'),
    ],
    ids=str,
)
def test_what_differs_is_said_in_one_line(wrong, says):
    (reason,) = reasons(**wrong)
    assert says in reason
    assert "\n" not in reason


def test_a_slow_stream_is_a_reason_only_with_a_gpu():
    slow = [*PIECES[:2], {"usage": {"completion_tokens": 1}}]  # no token after the first
    (reason,) = reasons(pieces=slow)
    assert "then 0 tokens/s; it should be: 2 s or less, 20 tokens/s or more" in reason
    assert reasons(pieces=slow, fast=False) == []


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Puts a program in the driver's place that runs these lines."""

    def write(lines):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return write


def test_a_card_without_a_model_on_it_is_a_reason(driver):
    driver("echo 18211, NVIDIA L4, 580.65")
    assert cards() == ("18211, NVIDIA L4, 580.65", True)
    driver("echo 12, NVIDIA L4, 580.65")
    assert cards() == ("12, NVIDIA L4, 580.65", False)


def test_a_driver_that_fails_is_quoted(driver):
    driver("echo failed to reach the driver >&2; exit 9")
    assert cards() == ("failed to reach the driver", False)


def test_a_command_that_is_not_there_and_one_that_is_silent_are_reasons():
    (reason,) = failed([("driver", "a card", lambda: command("no-such-driver"))])
    assert reason.startswith("driver: FileNotFoundError")
    assert command("false") == ("false printed nothing", False)


def test_without_a_graph_only_its_absence_is_said():
    asked = [sys.executable, "-m", "ops.gpu_check", "--without-gpu", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(asked, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu-check: health: ConnectError")
