"""The launcher's lines on the screen, and its state file."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.environment import read_environment
from contracts.errors import ConfigurationError
from launcher.console import Console, graph_ready
from launcher.datadir import DataDir, Part
from launcher.errors import StartRefused


def test_the_curl_names_the_secret_but_does_not_hold_it():
    text = graph_ready(read_environment({"DAARION_INTERNAL_SECRET": "s3cret"}))
    assert "$DAARION_INTERNAL_SECRET" in text
    assert "s3cret" not in text
    assert "X-Internal-Secret" not in graph_ready(read_environment({}))
    assert "$DAARION_ADMIN_SECRET" in graph_ready(
        read_environment({"DAARION_ADMIN_SECRET": "s3cret"})
    )


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]"),
        ("::", "127.0.0.1"),
    ],
)
def test_urls_work_from_this_machine(host, shown):
    environment = read_environment(
        {"DAARION_HOST": host, "DAARION_PORT": "8001", "DAARION_INTERNAL_SECRET": "s" * 16}
    )
    assert environment.ingress_url == f"http://{shown}:8001"


def test_a_closed_terminal_is_no_failure():
    stream = io.StringIO()
    stream.close()
    Console(stream).say("x")


def test_parts_are_remembered_and_cleared(tmp_path):
    data_dir = DataDir(tmp_path)
    parts = [Part("PostgreSQL", 1, "127.0.0.1:5432"), Part("NATS", None, "elsewhere:4222")]
    data_dir.write_parts(parts)
    assert data_dir.read_parts() == {}  # of a launcher that was killed
    with data_dir.lock():
        assert list(data_dir.read_parts().values()) == parts
        data_dir.clear_run()
        assert data_dir.read_parts() == {}
    assert list(data_dir.run.iterdir()) == []


def test_a_public_address_without_a_secret_is_refused_by_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "launcher", "run"],
        env={"PATH": os.environ["PATH"], "DAARION_HOST": "0.0.0.0"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout.startswith("refused: DAARION_HOST=0.0.0.0")
    assert len(run.stdout.splitlines()) == 1
    assert run.stderr == ""


def test_the_refusal_is_a_leaf_of_the_tree():
    assert issubclass(StartRefused, ConfigurationError)
