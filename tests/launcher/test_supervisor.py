"""The supervisor over real stores and a stand-in graph: processes, signals, lines on the screen."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import nats
import psutil
import psycopg
import pytest

from launcher.ports import free_ports
from launcher.postgres import PostgresServer
from tests.support.launcher.supervision import REPOSITORY, Run, alive, ask, running, wait_for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Path:
    """A data directory with a cluster: created once, copied for each test to save an initdb."""

    async def make(folder: Path) -> None:
        async with PostgresServer(folder, durable=False):
            pass

    folder = tmp_path_factory.mktemp("cluster")
    asyncio.run(make(folder))
    return folder


@pytest.fixture(autouse=True)
def data_dir(cluster, tmp_path) -> None:
    subprocess.run(["cp", "-a", str(cluster), str(tmp_path / "data")], check=True)


def test_a_run_from_start_to_ctrl_c(tmp_path):
    shutil.rmtree(tmp_path / "data")  # the very first start
    with running(tmp_path) as run:
        screen = run.screen
        order = [
            "starting PostgreSQL",
            "PostgreSQL is ready",
            "up to date",
            "starting NATS",
            "NATS is ready",
            "starting Serve",
            "] ready\n",
        ]
        positions = [screen.index(text) for text in order]
        assert positions == sorted(positions)
        assert "waiting for local_llm (starting: loading weights)" in screen
        assert f"http://127.0.0.1:{run.port}/docs" in screen
        assert "/internal/llm/proxy" in screen

        services = run.data_dir / "run/services.json"
        assert stat.S_IMODE(services.stat().st_mode) == 0o600
        urls = json.loads(services.read_text())
        [start] = run.starts()
        assert (start["database"], start["nats"]) == (urls["database_url"], urls["nats_url"])
        assert ask(urls["database_url"], "SELECT current_user, count(*) FROM migrated") == [
            ("daarion_service", 1)
        ]
        assert stat.S_IMODE(Path(start["directory"]).stat().st_mode) == 0o700
        assert not any(
            secret.read_text().strip() in screen for secret in (run.data_dir / "secrets").glob("*")
        )

        status = run.command("status").stdout
        assert [line.split()[0] for line in status.splitlines()] == [
            "PostgreSQL",
            "NATS",
            "Serve",
            "health",
        ]
        assert "ready" in status.splitlines()[-1]
        assert urls["database_url"] not in status

        reload = run.command("reload")
        assert (reload.returncode, reload.stdout) == (0, "reloaded\n")
        assert {"event": "reload"} in run.journal

        second = subprocess.run(
            run.argv,
            env=run.env | {"DAARION_PORT": str(free_ports(1)[0])},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 2
        assert f"belongs to a running launcher (pid {run.process.pid})" in second.stdout
        assert len(second.stdout.splitlines()) == 1

        family = run.family()
        assert len(family) >= 5
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(60) == 0
        assert alive(family) == []
        assert run.journal[-1] == {"event": "stop", "stores_alive": [True, True]}
        assert [line.partition("] ")[2] for line in run.screen.splitlines()[-4:]] == [
            "stopping Serve (Ctrl-C again: at once)",
            "stopping NATS",
            "stopping PostgreSQL",
            "stopped; nothing is left running",
        ]
        assert list((run.data_dir / "run").iterdir()) == []
        assert not Path(start["directory"]).exists()
        assert run.command("status").stdout.startswith("nothing is running")
        assert "start it with `make run`" in run.command("reload").stdout


def test_the_services_command_leaves_the_stores_to_a_graph_of_your_own(tmp_path):
    run = Run(tmp_path)
    run.argv = [sys.executable, "-m", "launcher", "services"]
    run.start()
    try:
        run.await_screen("Ctrl-C stops the stores")
        assert ".venv/bin/serve run serve_config.yaml" in run.screen
        urls = json.loads((run.data_dir / "run/services.json").read_text())
        assert ask(urls["database_url"], "SELECT current_user::text") == [("daarion_service",)]
        assert ask(
            urls["database_owner_url"],
            "SELECT count(*) > 1 FROM pg_tables WHERE tableowner = 'daarion_owner'",
        ) == [(True,)]
        asyncio.run(_publish(urls["nats_url"]))
        assert "Serve" not in run.parts()
    finally:
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(60) == 0
    assert not (run.data_dir / "run/services.json").exists()


def test_a_dead_process_is_restarted_and_the_others_keep_running(tmp_path):
    with running(tmp_path) as run:
        before = run.parts()
        urls = json.loads((run.data_dir / "run/services.json").read_text())
        for name in ("PostgreSQL", "NATS"):
            os.kill(before[name], signal.SIGKILL)
            run.await_screen(f"{name} was ended by signal 9.*starting it again in 0.5 s")
            wait_for(lambda name=name: run.parts()[name] not in (before[name], None))
        after = run.parts()
        assert after["Serve"] == before["Serve"]
        wait_for(lambda: _asks(urls["database_url"]))
        asyncio.run(_publish(urls["nats_url"]))

        [first] = run.starts()
        os.kill(first["pid"], signal.SIGKILL)
        run.await_screen(r"\] ready\n", times=2)
        assert not psutil.pid_exists(first["daemon"])
        assert run.parts() == {**after, "Serve": run.starts()[1]["pid"]}
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(60) == 0


def test_a_graph_that_keeps_dying_is_given_up(tmp_path):
    with running(tmp_path, "--crash", ready=False) as run:
        wait_for(lambda: "starting it again in 4 s" in run.screen)
        wait_for(
            lambda: run.parts()["Serve"] is None
        )  # a dead process's id must not be signalled: another process may have it by now
        assert run.process.wait(60) == 1
        assert len(run.starts()) == 5
        assert (
            "Serve ended with status 1 (the stand-in broke); starting it again in 4 s" in run.screen
        )
        last = run.screen.splitlines()[-1]
        assert "giving up" in last
        assert str(run.data_dir / "logs/serve.log") in last
        assert not any(psutil.pid_exists(start["daemon"]) for start in run.starts())


def test_a_refused_configuration_is_not_tried_again(tmp_path):
    with running(tmp_path, "--refuse", ready=False) as run:
        assert run.process.wait(60) == 2
        assert len(run.starts()) == 1
        assert (
            run.screen.splitlines()[-1]
            == "refused: Serve refused to start: llm.yaml: models: no such provider"
        )


@pytest.mark.parametrize(
    ("file", "old", "new", "shown"),
    [
        (
            "llm.yaml",
            "type: local",
            "type: wizard",
            "refused: Serve refused to start: .* providers.local.type: no adapter `wizard`",
        ),
        ("tools.yaml", "id: projects.list", "id: ''", "refused: tools.yaml: tools.0.id: "),
    ],
    ids=["refused by the graph", "refused before anything starts"],
)
def test_a_mistake_in_any_file_is_refused_by_the_real_processes(tmp_path, file, old, new, shown):
    configs = tmp_path / "configs"
    shutil.copytree(
        REPOSITORY / "configs", configs, ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    text = (configs / file).read_text()
    assert old in text
    (configs / file).write_text(text.replace(old, new))
    with running(tmp_path, "--real", ready=False, DAARION_CONFIG_DIR=str(configs)) as run:
        assert run.process.wait(120) == 2, run.screen
        assert re.match(shown, run.screen.splitlines()[-1]), run.screen
        assert run.screen.count("starting Serve") == shown.count("Serve refused")


def test_ctrl_c_twice_does_not_wait_for_a_deaf_graph(tmp_path):
    with running(tmp_path, "--deaf") as run:
        family = run.family()
        run.process.send_signal(signal.SIGINT)
        run.await_screen("stopping Serve")
        time.sleep(0.3)
        assert run.process.poll() is None
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(60) == 0  # the graph's own time to stop is 75 s
        assert alive(family) == []


def test_no_process_outlives_a_killed_launcher_and_the_next_start_works(tmp_path):
    with running(tmp_path) as run:
        owned = [psutil.Process(pid) for pid in run.parts().values()]
        [first] = run.starts()
        daemon = psutil.Process(first["daemon"])
        run.process.kill()
        run.process.wait(5)
        wait_for(lambda: alive(owned) == [], 10)
        assert alive(
            [daemon]
        )  # it left its session, as Ray's daemons may; the next start finds it by its marker
        assert run.command("status").stdout.startswith("nothing is running")

        run.start()
        run.await_screen(r"\] ready\n")
        assert "an earlier run was killed" in run.screen
        assert alive([daemon]) == []
        assert not Path(first["directory"]).exists()
        assert run.starts()[1]["database"] == first["database"]
        assert ask(first["database"], "SELECT count(*) FROM migrated") == [(2,)]
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(60) == 0


def test_a_busy_port_is_reported_in_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running(tmp_path, ready=False, DAARION_PORT=str(port)) as run:
            assert run.process.wait(60) == 2
            assert len(run.screen.splitlines()) == 1
            assert f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}" in run.screen
            assert not (run.data_dir / "run/state.json").exists()


@pytest.mark.parametrize("variable", ["DATABASE_URL", "NATS_URL"])
def test_a_remote_store_that_does_not_answer_is_reported_in_one_line(tmp_path, variable):
    port = free_ports(1)[0]
    scheme = {"DATABASE_URL": "postgresql", "NATS_URL": "nats"}[variable]
    with running(
        tmp_path, ready=False, **{variable: f"{scheme}://someone:hidden@127.0.0.1:{port}/x"}
    ) as run:
        assert run.process.wait(60) == 2
        [line] = run.screen.splitlines()
        assert line.startswith(f"refused: {variable} is set, but")
        assert "hidden" not in run.screen


def _asks(url: str) -> bool:
    try:
        return ask(url, "SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


async def _publish(url: str) -> None:
    connection = await nats.connect(url)
    await connection.publish("x", b"1")
    await connection.flush(5)
    await connection.close()
