"""The data directory: its modes, its lock, and writes on a full disk."""

import asyncio
import errno
import fcntl
import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from configs.environment import read_environment
from launcher.console import Console
from launcher.datadir import DataDir, write_private
from launcher.errors import ServiceFailed, StartRefused
from launcher.nats import NatsServer
from launcher.supervisor import Supervisor


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_closed_to_others(tmp_path):
    data_dir = DataDir(tmp_path / "data")
    data_dir.prepare()
    assert mode(data_dir.root) == (0o711 if os.geteuid() == 0 else 0o700)
    for folder in (
        data_dir.secrets,
        data_dir.logs,
        data_dir.run,
        data_dir.nats,
        data_dir.root / "models",
        data_dir.root / "kb",
        data_dir.root / "cache",
    ):
        assert mode(folder) == 0o700


def test_a_knowledge_base_of_another_account_keeps_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "data" / "kb"
    folder.mkdir(parents=True)
    folder.chmod(0o750)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    DataDir(tmp_path / "data").prepare()
    assert folder.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("name", ["secrets", "kb"])
def test_an_open_folder_is_closed(tmp_path, name):
    folder = tmp_path / "data" / name
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    DataDir(tmp_path / "data").prepare()
    assert mode(folder) == 0o700


def test_a_folder_of_documents_elsewhere_keeps_its_mode(tmp_path):
    shared = tmp_path / "documents"
    shared.mkdir()
    shared.chmod(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/kb").symlink_to(shared)
    DataDir(tmp_path / "data").prepare()
    assert mode(shared) == 0o755


def test_a_folder_that_cannot_be_made_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match="DAARION_DATA_DIR") as refusal:
        DataDir(tmp_path / "file" / "data").prepare()
    assert "\n" not in refusal.value.message


def test_a_secret_is_made_once_and_private(tmp_path):
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


def test_a_private_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "run" / "services.json"
    for text in ("one", "two"):
        write_private(path, text)
        assert path.read_text() == text
        assert mode(path) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_the_lock_has_one_holder_and_dies_with_it(tmp_path):
    data_dir = DataDir(tmp_path)
    code = (
        "import sys, pathlib, time; from launcher.datadir import *; "
        "lock = DataDir(pathlib.Path(sys.argv[1])).lock(); lock.__enter__(); "
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as other:
        assert other.stdout.readline() == b"held\n"
        assert data_dir.holder() == other.pid
        with pytest.raises(StartRefused, match=f"pid {other.pid}"), data_dir.lock():
            pass
        other.kill()
    assert data_dir.holder() is None
    with data_dir.lock():
        assert data_dir.holder() == os.getpid()
    assert data_dir.holder() is None


def test_the_lock_is_got_while_somebody_only_looks_at_it(tmp_path):
    data_dir = DataDir(tmp_path)
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        threading.Timer(0.08, fcntl.flock, [looker, fcntl.LOCK_UN]).start()
        with data_dir.lock():
            assert data_dir.holder() == os.getpid()


@pytest.mark.parametrize(
    ("made", "permissions"),
    [(["letters.txt"], 0o755), ([], 0o1777)],
    ids=["somebody's folder", "like /tmp"],
)
def test_a_shared_folder_is_refused_and_left_as_it_is(tmp_path, made, permissions):
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


def test_a_folder_with_nothing_but_models_is_ours(tmp_path):
    root = tmp_path / "data"
    (root / "models").mkdir(parents=True)
    root.chmod(0o755)
    DataDir(root).prepare()
    assert mode(root) & 0o066 == 0


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_private(path, "old")
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        write_private(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_does_not_end_the_supervisor(tmp_path, monkeypatch):
    screen = io.StringIO()
    supervisor = Supervisor(
        read_environment({"DAARION_DATA_DIR": str(tmp_path)}), Console(screen), [], None
    )
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_room)
        supervisor._record()
        supervisor._record()
    assert screen.getvalue().count("No space left on device") == 1  # reported once
    supervisor._record()
    with supervisor._data_dir.lock():
        assert list(supervisor._data_dir.read_parts()) == ["PostgreSQL", "NATS"]


async def test_housekeeping_reports_a_full_disk_once(tmp_path, monkeypatch):
    screen, failures = io.StringIO(), []
    given = read_environment({"DAARION_DATA_DIR": str(tmp_path)})
    supervisor = Supervisor(given, Console(screen), [], None)

    def fail(*_: object) -> None:
        failures.append(1)
        no_room()

    monkeypatch.setattr("launcher.supervisor._HOUSEKEEPING_S", 0.01)
    monkeypatch.setattr(os, "fsync", fail)
    supervisor._record()
    housekeeping = asyncio.create_task(supervisor._housekeeping())
    async with asyncio.timeout(10):
        while len(failures) < 4:
            await asyncio.sleep(0.01)
    housekeeping.cancel()
    assert screen.getvalue().count("No space left on device") == 1


async def test_a_store_that_cannot_be_prepared_on_a_full_disk_may_be_tried_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(ServiceFailed, match="NATS cannot be started: No space left on device"):
        await NatsServer(tmp_path).start()
