"""Logs of runs and of Ray: bounded, private, in one folder."""

import errno
import os
import stat
from pathlib import Path

from launcher import logs


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_start_keeps_the_last_runs(tmp_path):
    log = tmp_path / "serve.log"
    for run in range(6):
        logs.begin(log)
        log.write_text(f"run {run}")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["serve.log", "serve.log.1", "serve.log.2", "serve.log.3"]
    assert (tmp_path / "serve.log.1").read_text() == "run 4"


def test_a_large_log_is_cut_under_its_writer(tmp_path):
    log = tmp_path / "serve.log"
    with log.open("a") as writer:
        writer.write("x" * 100)
        writer.flush()
        assert not logs.cut_when_large(log, 100)
        assert logs.cut_when_large(log, 99)
        writer.write("after")
    assert log.read_text() == "after"
    assert (tmp_path / "serve.log.1").read_text() == "x" * 100


def test_a_large_log_is_emptied_where_there_is_no_room_for_a_copy(tmp_path, monkeypatch):
    log = tmp_path / "serve.log"
    log.write_text("x" * 100)
    monkeypatch.setattr(logs.shutil, "copy2", no_room)
    assert logs.cut_when_large(log, 99)
    assert log.read_text() == ""
    assert list(tmp_path.iterdir()) == [log]


def test_the_last_line_that_says_something(tmp_path):
    log = tmp_path / "serve.log"
    assert logs.last_line(log) == ""
    log.write_text("one\ntwo\n\n  \n")
    assert logs.last_line(log) == "two"


def logs_of(instance: Path) -> Path:
    folder = instance / "ray/session_1/logs/serve"
    folder.mkdir(parents=True)
    (instance / "ray/session_latest").symlink_to("session_1")
    return folder


def test_they_are_found_in_one_place_during_and_after_a_run(tmp_path):
    instance, logs_folder = tmp_path / "instance", tmp_path / "logs"
    logs_folder.mkdir()
    (logs_of(instance) / "replica.log").write_text("event")
    for _ in range(2):
        logs.show_ray(logs_folder, instance)
        assert (logs_folder / "ray/serve/replica.log").read_text() == "event"
        logs.keep_ray(logs_folder, instance)
    instance.rename(tmp_path / "gone")
    assert (logs_folder / "ray/serve/replica.log").read_text() == "event"
    assert mode(logs_folder / "ray") == 0o700


def test_the_newest_are_kept_within_the_bound(tmp_path):
    folder = logs_of(tmp_path / "instance")
    for age, name in enumerate(("new", "middle", "old")):
        (folder / name).write_text("x" * 10)
        os.utime(folder / name, (1000 - age, 1000 - age))
    logs.keep_ray(tmp_path, tmp_path / "instance", max_bytes=25)
    assert sorted(path.name for path in (tmp_path / "ray/serve").iterdir()) == ["middle", "new"]


def test_a_missing_log_folder_is_not_a_failure(tmp_path):
    logs.keep_ray(tmp_path, tmp_path / "nowhere")
    assert list((tmp_path / "ray").iterdir()) == []
