"""The graph's process and Serve's own command as an operator starts them, without the engine."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from configs.environment import read_environment
from deployments.graph.serve_graph import _semaphores
from deployments.graph.serve_variables import serve_variables
from launcher.instance import Instance
from launcher.ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[3]
NO_STORE = "postgresql://nobody:nothing@127.0.0.1:9/none"

pytestmark = [pytest.mark.graph, pytest.mark.timeout(300, func_only=True)]


def variables_of(folder: Path) -> dict[str, str]:
    """The operator's environment without variables that name another graph."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DAARION_", "RAY_", "DATABASE_", "NATS_"))
    }
    return kept | {"DAARION_DATA_DIR": str(folder / "data"), "DATABASE_URL": NO_STORE}


def until(condition, message, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.1)


def catches(pid: int, number: signal.Signals) -> bool:
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def test_a_stop_before_ray_runs_starts_nothing(tmp_path):
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "deployments.graph.serve_graph", "serve_config.yaml"],
            cwd=REPOSITORY,
            env=variables_of(tmp_path) | {"RAY_TMPDIR": str(tmp_path)},
            stdout=output,
            stderr=output,
        ) as graph,
    ):
        until(lambda: catches(graph.pid, signal.SIGHUP), log.read_text)
        graph.send_signal(signal.SIGHUP)  # a reload that comes too early ends no process
        graph.send_signal(signal.SIGTERM)
        assert graph.wait(120) == 0, log.read_text()
    assert log.read_text() == ""
    assert not (tmp_path / "ray").exists()


def test_a_semaphore_of_a_killed_process_is_known_by_its_path():
    code = (
        "import multiprocessing, sys; lock = multiprocessing.get_context('spawn').Lock(); "
        "print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"up\n"
        (path,) = _semaphores(process.pid)
        assert path.exists()
        process.communicate()
    assert not path.exists()  # it ended by itself and removed its own files
    assert _semaphores(process.pid) == set()


def test_serves_own_command_binds_no_public_address_without_a_secret(tmp_path):
    """The file's `http_options.host` counts, not DAARION_HOST: each ingress replica asks Serve."""
    (port,) = free_ports(1)
    file, log = tmp_path / "serve.yaml", tmp_path / "log"
    application = {
        "name": "root",
        "route_prefix": "/",
        "import_path": "deployments.graph.root:build",
        "args": {"applications": {}},
    }
    deployment = {"name": "Root", "ray_actor_options": {"num_cpus": 0.05}}
    file.write_text(
        yaml.safe_dump(
            {
                "http_options": {"host": "0.0.0.0", "port": port},
                "applications": [application | {"deployments": [deployment]}],
            }
        )
    )
    instance, given = Instance.create(), variables_of(tmp_path)
    variables = given | serve_variables(read_environment(given), instance)
    seen: list[psutil.Process] = []
    try:
        with log.open("w") as output, subprocess.Popen(
            [Path(sys.executable).with_name("serve"), "run", str(file)],
            cwd=REPOSITORY, env=variables, stdout=output, stderr=output, start_new_session=True,
        ) as serve:  # fmt: skip
            try:
                refusal = (
                    "Serve's http_options.host 0.0.0.0 can be reached from other machines, "
                    "but no secret is set"
                )
                until(lambda: refusal in said(log, instance), log.read_text)
                seen = psutil.Process(serve.pid).children(recursive=True)
                replicas = [process for process in seen if "ServeReplica" in title(process)]
                assert not [
                    address
                    for process in replicas
                    for address in listening(process)
                    if address[0] not in {"127.0.0.1", "::1"}
                ]
            finally:
                serve.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    serve.wait(60)
                serve.kill()
    finally:
        for process in psutil.wait_procs(seen, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(instance.directory, ignore_errors=True)


def said(log: Path, instance: Instance) -> str:
    """What the command showed and what Serve's controller logged."""
    logs = (instance.directory / "ray").glob("*/session_latest/logs/serve/*.log")
    return "".join(path.read_text(errors="replace") for path in (log, *logs))


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    with contextlib.suppress(psutil.Error):
        found = [
            connection.laddr
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        return {(address.ip.removeprefix("::ffff:"), address.port) for address in found}
    return set()
