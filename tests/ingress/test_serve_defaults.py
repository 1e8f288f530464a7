"""Settings of the product's own Ray node, made before Ray is imported."""

import importlib
import os
import shlex
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from configs.environment import read_environment
from deployments.graph.ray_patches import bound_heads
from deployments.graph.serve_defaults import ray_variables
from interfaces.http.base import request_slots

REPOSITORY = Path(__file__).resolve().parents[2]


def token_of(folder):
    return Path(
        ray_variables(read_environment({"DAARION_DATA_DIR": str(folder)}))["RAY_AUTH_TOKEN_PATH"]
    )


def test_the_token_is_private_and_the_same_for_all_who_start_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        tokens = {file.read_text() for file in pool.map(token_of, [tmp_path / "data"] * 16)}
    (token,) = tokens
    assert len(token) == 64
    assert stat.S_IMODE(token_of(tmp_path / "data").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "data").glob("*token*")] == ["ray-token"]
    assert [path.name for path in (tmp_path / "data").glob(".*")] == []


def test_a_token_whose_maker_died_is_made_anew(tmp_path):
    (tmp_path / "ray-token").touch()
    assert len(token_of(tmp_path).read_text()) == 64


def test_a_death_while_writing_leaves_no_token(tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as death:
        death.setattr(os, "fsync", dies)
        with pytest.raises(KeyboardInterrupt):
            token_of(tmp_path)
    assert not (tmp_path / "ray-token").exists()


@pytest.mark.parametrize("file", ["serve_config.yaml", "configs/serve.gpu.yaml"])
def test_serves_own_bounds_lie_above_what_an_ingress_may_hold(file):
    """An ingress refuses requests beyond its bounds in the envelope, before Serve refuses them. It
    holds `max_concurrent` running requests and as many arriving bodies.
    """
    bounded = [
        each
        for each in yaml.safe_load((REPOSITORY / file).read_text())["applications"]
        if "max_concurrent" in each["args"]
    ]
    assert {each["name"] for each in bounded} == {"llm", "memory", "tools", "workspace", "agents"}
    for application in bounded:
        ingress = application["deployments"][0]
        assert ingress["max_ongoing_requests"] > 2 * application["args"]["max_concurrent"], (
            application["name"]
        )


def test_each_server_of_serve_bounds_heads(tmp_path):
    variables = ray_variables(read_environment({"DAARION_DATA_DIR": str(tmp_path)}))
    module, _, function = variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert getattr(importlib.import_module(module), function) is bound_heads
    # HAProxy ends no request before the replica has answered it with the reason.
    assert request_slots.UNREAD_S < int(variables["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) < 600


def test_a_shell_takes_the_variables_for_a_graph_of_its_own(tmp_path):
    data = tmp_path / "a folder"
    script = (
        f'eval "$({shlex.quote(sys.executable)} -m deployments.graph.serve_variables)" && env -0'
    )
    given = {
        "PATH": os.environ["PATH"],
        "DAARION_DATA_DIR": str(data),
        "HF_HUB_OFFLINE": "0",
        "DATABASE_URL": "postgresql://u:hidden@x/y",
    }
    done = subprocess.run(
        ["bash", "-c", script],
        env=given,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = dict(line.partition("=")[::2] for line in done.stdout.split("\0") if line)
    assert (
        found["RAY_USAGE_STATS_ENABLED"],
        found["RAY_SERVE_ENABLE_HA_PROXY"],
        found["RAY_AUTH_MODE"],
    ) == ("0", "1", "token")
    assert found["DAARION_DATA_DIR"] == str(data)
    assert found["HF_HUB_OFFLINE"] == "0"  # the operator's own
    assert found["DATABASE_URL"] == given["DATABASE_URL"]
    sockets = Path(found["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    try:
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert Path(found["RAY_TMPDIR"]).parent == sockets
    finally:
        for path in sorted(sockets.rglob("*"), reverse=True):
            path.rmdir()
        sockets.rmdir()
