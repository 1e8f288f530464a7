import asyncio
import errno
import fcntl
import io
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.environment import read_environment
from contracts.errors import ConfigurationError
from launcher import logs, messages, preflight, ray_logs, readiness, state
from launcher.backoff import Backoff, FailureWindow
from launcher.console import Console
from launcher.datadir import DataDir, DataDirLock, write_private
from launcher.errors import StartRefused
from launcher.ports import StickyPorts, free_ports, free_range, is_free
from launcher.reloading import reload_graph
from launcher.state import Part
from launcher.supervisor import Supervisor


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestBackoff:
    def test_doubles_up_to_its_bound(self):
        backoff = Backoff()
        assert [backoff.after(1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]

    def test_a_long_life_starts_over(self):
        backoff = Backoff()
        for _ in range(5):
            backoff.after(1)
        assert backoff.after(61) == 0.5

    @given(st.lists(st.floats(0, 1000), min_size=1, max_size=50))
    def test_stays_within_its_bounds(self, lives):
        backoff = Backoff()
        assert all(0.5 <= backoff.after(life) <= 30 for life in lives)

    def test_five_failures_within_two_minutes_are_too_many(self):
        window = FailureWindow()
        for now in (0, 50, 100, 130):
            window.add(now)
            window.succeeded()
            assert not window.full
        window.add(140)  # the first one is too old by now
        assert not window.full
        window.add(169)
        assert window.full

    def test_five_failures_without_a_success_are_too_many_at_any_pace(self):
        window = FailureWindow()
        for now in range(0, 4000, 1000):
            window.add(now)
            assert not window.full
        window.add(4000)
        assert window.full


class TestDataDir:
    def test_everything_is_closed_to_others(self, tmp_path):
        data_dir = DataDir(tmp_path / "data")
        data_dir.prepare()
        assert mode(data_dir.root) == (0o711 if os.geteuid() == 0 else 0o700)
        for folder in (
            data_dir.secrets,
            data_dir.logs,
            data_dir.run,
            data_dir.nats,
            data_dir.models,
        ):
            assert mode(folder) == 0o700

    def test_an_open_folder_is_closed(self, tmp_path):
        data_dir = DataDir(tmp_path)
        data_dir.secrets.mkdir(mode=0o755)
        data_dir.prepare()
        assert mode(data_dir.secrets) == 0o700

    def test_a_folder_that_cannot_be_made_is_told_in_one_line(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StartRefused, match="DAARION_DATA_DIR") as refusal:
            DataDir(tmp_path / "file" / "data").prepare()
        assert "\n" not in refusal.value.message

    def test_a_secret_is_made_once_and_private(self, tmp_path):
        data_dir = DataDir(tmp_path)
        old = os.umask(0)
        try:
            secret = data_dir.secret("nats")
        finally:
            os.umask(old)
        assert len(secret) >= 40
        assert data_dir.secret("nats") == secret
        assert data_dir.secret("other") != secret
        assert mode(data_dir.secrets / "nats") == 0o600
        assert sorted(path.name for path in data_dir.secrets.iterdir()) == ["nats", "other"]

    def test_a_private_file_is_replaced_in_one_step(self, tmp_path):
        path = tmp_path / "run" / "services.json"
        for text in ("one", "two"):
            write_private(path, text)
            assert path.read_text() == text
            assert mode(path) == 0o600
        assert list(path.parent.iterdir()) == [path]

    def test_the_lock_has_one_holder_and_dies_with_it(self, tmp_path):
        data_dir = DataDir(tmp_path)
        code = (
            "import sys, pathlib, time; from launcher.datadir import *; "
            "DataDirLock(DataDir(pathlib.Path(sys.argv[1]))).acquire(); print('held', flush=True); time.sleep(60)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as other:
            assert other.stdout.readline() == b"held\n"
            assert DataDirLock(data_dir).holder() == other.pid
            with pytest.raises(StartRefused, match=f"pid {other.pid}"):
                DataDirLock(data_dir).acquire()
            other.kill()
        lock = DataDirLock(data_dir)
        assert lock.holder() is None
        lock.acquire()
        assert DataDirLock(data_dir).holder() == os.getpid()
        lock.release()
        assert DataDirLock(data_dir).holder() is None

    def test_the_lock_is_got_while_somebody_only_looks_at_it(self, tmp_path):
        data_dir = DataDir(tmp_path)
        (tmp_path / ".lock").touch()
        with (tmp_path / ".lock").open() as looker:
            fcntl.flock(looker, fcntl.LOCK_SH)
            threading.Timer(0.08, fcntl.flock, [looker, fcntl.LOCK_UN]).start()
            lock = DataDirLock(data_dir)
            lock.acquire()
            assert lock.holder() == os.getpid()
            lock.release()

    @pytest.mark.parametrize(
        ("made", "permissions"),
        [(["letters.txt"], 0o755), ([], 0o1777)],
        ids=["somebody's folder", "like /tmp"],
    )
    def test_a_shared_folder_is_refused_and_left_as_it_is(self, tmp_path, made, permissions):
        shared = tmp_path / "shared"
        shared.mkdir()
        for name in made:
            (shared / name).touch()
        shared.chmod(permissions)
        with pytest.raises(StartRefused, match="is shared") as refusal:
            DataDir(shared).prepare()
        assert "\n" not in refusal.value.message
        assert mode(shared) == permissions
        assert sorted(path.name for path in shared.iterdir()) == made

    def test_a_folder_with_nothing_but_models_is_ours(self, tmp_path):
        root = tmp_path / "data"
        (root / "models").mkdir(parents=True)
        root.chmod(0o755)
        DataDir(root).prepare()
        assert mode(root) & 0o066 == 0

    def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(self, tmp_path, monkeypatch):
        path = tmp_path / "state.json"
        write_private(path, "old")
        monkeypatch.setattr(os, "fsync", no_room)
        with pytest.raises(OSError, match="No space left"):
            write_private(path, "new")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


class TestReload:
    """`make reload` signals the graph that runs, and no other process."""

    async def reload(self, data_dir, pid):
        data_dir.prepare()
        state.write_parts(data_dir, [Part("Serve", pid, "x")])
        lock, screen = DataDirLock(data_dir), io.StringIO()
        lock.acquire()
        try:
            return await reload_graph(data_dir, Console(screen)), screen.getvalue()
        finally:
            lock.release()

    @pytest.mark.parametrize(
        "pid", [None, os.getppid(), 2**22 + 1], ids=["dead", "somebody else's", "gone"]
    )
    async def test_what_is_no_running_graph_is_told_and_not_signalled(self, tmp_path, pid):
        status, screen = await self.reload(DataDir(tmp_path / "data"), pid)
        assert status == 1
        assert screen.startswith("the graph is not running at this moment")
        assert screen.count("\n") == 1

    @pytest.mark.parametrize(
        ("answer", "status"), [("reloaded", 0), ("not reloaded: llm.yaml: models: too short", 1)]
    )
    async def test_the_graphs_answer_is_shown(self, tmp_path, answer, status):
        data_dir = DataDir(tmp_path / "data")
        data_dir.prepare()
        data_dir.log("serve").write_text("2026 daarion.serve_graph: reloaded\n")  # an older answer
        code = (
            "import signal, sys\nsignal.signal(signal.SIGHUP, lambda *_: print('2026 daarion.serve_graph: ' + sys.argv[1], flush=True))"
            "\nprint('up', file=sys.stderr, flush=True)\nwhile True: signal.pause()"
        )
        with (
            data_dir.log("serve").open("a") as log,
            subprocess.Popen(
                [sys.executable, "-c", code, answer], stdout=log, stderr=subprocess.PIPE
            ) as graph,
        ):
            assert graph.stderr.readline() == b"up\n"
            assert await self.reload(data_dir, graph.pid) == (status, f"{answer}\n")
            graph.kill()

    async def test_without_a_launcher_nothing_is_signalled(self, tmp_path):
        data_dir, screen = DataDir(tmp_path / "data"), io.StringIO()
        data_dir.prepare()
        state.write_parts(data_dir, [Part("Serve", os.getpid(), "x")])
        assert await reload_graph(data_dir, Console(screen)) == 1
        assert "start it with `make run`" in screen.getvalue()


class TestPorts:
    def test_a_port_is_kept_while_it_is_free(self, tmp_path):
        ports = StickyPorts(tmp_path / "ports.json")
        port = ports.take("postgres")
        assert StickyPorts(tmp_path / "ports.json").take("postgres") == port
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            assert not is_free(port)
            assert ports.take("postgres") != port

    @pytest.mark.parametrize("content", ["", "[]", '{"postgres": "x"}', '{"postgres": 700000}'])
    def test_a_broken_file_is_no_hindrance(self, tmp_path, content):
        (tmp_path / "ports.json").write_text(content)
        port = StickyPorts(tmp_path / "ports.json").take("postgres")
        assert json.loads((tmp_path / "ports.json").read_text()) == {"postgres": port}

    def test_a_range_with_a_busy_port_is_passed_over(self):
        [port] = free_ports(1)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            assert free_range(port, port + 1, 1) == (port + 1, port + 1)
            assert free_range(port, port, 1) == (
                port,
                port,
            )  # nothing better: whoever binds there tries the next


class TestPreflight:
    def refusal(self, check, *arguments) -> str:
        with pytest.raises(StartRefused) as refused:
            check(*arguments)
        assert "\n" not in refused.value.message
        return refused.value.message

    def test_memory(self):
        preflight.check_memory(preflight.MEMORY_NEEDED)
        message = self.refusal(preflight.check_memory, preflight.MEMORY_NEEDED - (1 << 30))
        assert "5.0 GB of memory are available, the graph needs about 6.0 GB" in message

    def test_disk(self, tmp_path):
        preflight.check_disk(preflight.DISK_NEEDED, tmp_path)
        assert "DAARION_DATA_DIR" in self.refusal(preflight.check_disk, 1 << 20, tmp_path)

    def test_port(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            message = self.refusal(preflight.check_port, "127.0.0.1", port)
        assert f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}" in message
        assert "DAARION_PORT" in message
        preflight.check_port("127.0.0.1", port)

    def test_an_address_of_another_machine(self):
        assert "DAARION_HOST" in self.refusal(preflight.check_port, "203.0.113.7", 8000)

    def test_packages(self):
        preflight.check_packages()
        message = self.refusal(
            preflight.check_packages, {"json": "json", "no_such_module": "what-to-install"}
        )
        assert "what-to-install" in message
        assert "json" not in message

    def test_files(self, tmp_path):
        good, bad = tmp_path / "llm.yaml", tmp_path / "tools.yaml"
        good.write_text("providers: {}")
        preflight.check_files([good])
        bad.write_bytes(b"\xff\xfe\x00")
        assert "tools.yaml is not UTF-8" in self.refusal(preflight.check_files, [good, bad])
        assert "absent.yaml cannot be read" in self.refusal(
            preflight.check_files, [tmp_path / "absent.yaml"]
        )

    async def test_stores_elsewhere(self):
        [port] = free_ports(1)
        for check, url in (
            (preflight.check_database, f"postgresql://u:hidden@127.0.0.1:{port}/d"),
            (preflight.check_database, "no url at all"),
            (preflight.check_nats, f"nats://u:hidden@127.0.0.1:{port}"),
            (preflight.check_nats, "nats://:x"),
        ):
            with pytest.raises(StartRefused, match="is set, but no") as refused:
                await check(url)
            assert "hidden" not in refused.value.message


class TestReadiness:
    def test_names_what_is_awaited(self):
        body = {
            "status": "starting",
            "checks": {
                "database": {"state": "ready", "age_s": 1},
                "local_llm": {"state": "starting", "age_s": 0, "reason": "loading\nweights"},
                "nats": {"state": "unavailable"},
            },
        }
        assert (
            readiness.describe(body) == "local_llm (starting: loading weights), nats (unavailable)"
        )

    @given(
        st.recursive(
            st.none() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_any_answer_gives_one_short_line(self, body):
        for each in (body, {"checks": body}):
            line = readiness.describe(each)
            assert line
            assert len(line.splitlines()) == 1
            assert len(line) < 260

    async def test_waits_until_every_part_is_ready_and_says_what_changes(self):
        said = await self.said_of(
            b"503 x\r\n\r\n{}", b'503 x\r\n\r\n{"checks":{"a":{"state":"starting"}}}',
            b'200 OK\r\n\r\n{"status":"degraded","checks":{"b":{"state":"starting"}}}', b'200 OK\r\n\r\n{"status":"ready"}',
        )  # fmt: skip
        assert said == [
            "waiting for the applications (not deployed yet)",
            "waiting for a (starting)",
            "waiting for b (starting)",
        ]

    async def test_goes_on_without_what_can_be_done_without(self):
        degraded = b'200 OK\r\n\r\n{"status":"degraded","checks":{"b":{"state":"unavailable"}}}'
        said = await self.said_of(degraded, degraded, grace_s=0.4)
        assert said == ["waiting for b (unavailable)", "going on without b (unavailable)"]

    @staticmethod
    async def said_of(*given: bytes, grace_s: float = 60) -> list[str]:
        answers = iter(given)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 " + next(answers))
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health"
            said: list[str] = []
            await asyncio.wait_for(readiness.until_ready(url, said.append, grace_s), 10)
        assert await readiness.is_ready(url) == "the ingress (no answer yet)"
        return said


class TestLogs:
    def test_a_start_keeps_the_last_runs(self, tmp_path):
        log = tmp_path / "serve.log"
        for run in range(6):
            logs.begin(log)
            log.write_text(f"run {run}")
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["serve.log", "serve.log.1", "serve.log.2", "serve.log.3"]
        assert (tmp_path / "serve.log.1").read_text() == "run 4"

    def test_a_large_log_is_cut_under_its_writer(self, tmp_path):
        log = tmp_path / "serve.log"
        with log.open("a") as writer:
            writer.write("x" * 100)
            writer.flush()
            assert not logs.cut_when_large(log, 100)
            assert logs.cut_when_large(log, 99)
            writer.write("after")
        assert log.read_text() == "after"
        assert (tmp_path / "serve.log.1").read_text() == "x" * 100

    def test_a_large_log_is_emptied_where_there_is_no_room_for_a_copy(self, tmp_path, monkeypatch):
        log = tmp_path / "serve.log"
        log.write_text("x" * 100)
        monkeypatch.setattr(logs.shutil, "copy2", no_room)
        assert logs.cut_when_large(log, 99)
        assert log.read_text() == ""
        assert list(tmp_path.iterdir()) == [log]

    def test_the_last_line_that_says_something(self, tmp_path):
        log = tmp_path / "serve.log"
        assert logs.last_line(log) == ""
        log.write_text("one\ntwo\n\n  \n")
        assert logs.last_line(log) == "two"


class TestRayLogs:
    def logs_of(self, instance: Path) -> Path:
        folder = instance / "ray/session_1/logs/serve"
        folder.mkdir(parents=True)
        (instance / "ray/session_latest").symlink_to("session_1")
        return folder

    def test_they_are_found_in_one_place_during_and_after_a_run(self, tmp_path):
        instance, logs_folder = tmp_path / "instance", tmp_path / "logs"
        logs_folder.mkdir()
        (self.logs_of(instance) / "replica.log").write_text("event")
        for _ in range(2):
            ray_logs.show(logs_folder, instance)
            assert (logs_folder / "ray/serve/replica.log").read_text() == "event"
            ray_logs.keep(logs_folder, instance)
        instance.rename(tmp_path / "gone")
        assert (logs_folder / "ray/serve/replica.log").read_text() == "event"
        assert mode(logs_folder / "ray") == 0o700

    def test_the_newest_are_kept_within_the_bound(self, tmp_path):
        folder = self.logs_of(tmp_path / "instance")
        for age, name in enumerate(("new", "middle", "old")):
            (folder / name).write_text("x" * 10)
            os.utime(folder / name, (1000 - age, 1000 - age))
        ray_logs.keep(tmp_path, tmp_path / "instance", max_bytes=25)
        assert sorted(path.name for path in (tmp_path / "ray/serve").iterdir()) == ["middle", "new"]

    def test_no_logs_are_no_failure(self, tmp_path):
        ray_logs.keep(tmp_path, tmp_path / "nowhere")
        assert list((tmp_path / "ray").iterdir()) == []


class TestScreen:
    def test_the_curl_names_the_secret_but_does_not_hold_it(self):
        text = messages.graph_ready(read_environment({"DAARION_INTERNAL_SECRET": "s3cret"}))
        assert "$DAARION_INTERNAL_SECRET" in text
        assert "s3cret" not in text
        assert "X-Internal-Secret" not in messages.graph_ready(read_environment({}))
        assert "$DAARION_ADMIN_SECRET" in messages.graph_ready(
            read_environment({"DAARION_ADMIN_SECRET": "s3cret"})
        )

    @pytest.mark.parametrize(
        ("host", "shown"),
        [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("::1", "[::1]"),
            ("::", "[::1]"),
            ("10.0.0.7", "10.0.0.7"),
        ],
    )
    def test_urls_work_from_this_machine(self, host, shown):
        environment = read_environment(
            {"DAARION_HOST": host, "DAARION_PORT": "8001", "DAARION_INTERNAL_SECRET": "s" * 16}
        )
        assert messages.base_url(environment) == f"http://{shown}:8001"

    def test_a_closed_terminal_is_no_failure(self):
        stream = io.StringIO()
        stream.close()
        Console(stream).say("x")

    def test_parts_are_remembered_and_cleared(self, tmp_path):
        data_dir = DataDir(tmp_path)
        parts = [Part("PostgreSQL", 1, "127.0.0.1:5432"), Part("NATS", None, "elsewhere:4222")]
        state.write_parts(data_dir, parts)
        assert state.read_parts(data_dir) == parts
        state.clear(data_dir)
        assert state.read_parts(data_dir) == []
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


def test_a_full_disk_does_not_end_the_supervisor(tmp_path, monkeypatch):
    screen = io.StringIO()
    supervisor = Supervisor(
        read_environment({"DAARION_DATA_DIR": str(tmp_path)}), Console(screen), [], None
    )
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_room)
        supervisor._record()
        supervisor._record()
    assert screen.getvalue().count("No space left on device") == 1  # told once
    supervisor._record()
    assert [part.name for part in state.read_parts(DataDir(tmp_path))] == ["PostgreSQL", "NATS"]
