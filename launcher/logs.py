"""The log files: those of the children, and those of Ray and the replicas in `logs/ray`.

A child's log is rotated at each start, and cut when it exceeds a bound. Ray writes into the
instance's directory: while the graph runs, `logs/ray` is a link to it; when it has stopped, or was
found dead, the newest logs are copied there.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_BYTES = 20 << 20
_GENERATIONS = 3
_QUOTED = 200
RAY_KEPT_BYTES = 50 << 20
_RAY_SOURCE = Path("ray/session_latest/logs")  # below an instance's directory


def begin(log: Path) -> None:
    """Moves the log of the last run aside (`.1` … `.3`, the oldest is dropped)."""
    if log.exists() and log.stat().st_size > 0:
        RotatingFileHandler(log, backupCount=_GENERATIONS, delay=True).doRollover()


def cut_when_large(log: Path, max_bytes: int = MAX_BYTES) -> bool:
    """Copies a log over the bound to `.1` and truncates it; the child appends to the same file.

    Lines written between copy and truncation are lost: the price of needing no help from the
    child. On a full disk the log is truncated without a copy, which frees space.
    """
    if not log.exists() or log.stat().st_size <= max_bytes:
        return False
    copy = log.with_name(f"{log.name}.1")
    try:
        shutil.copy2(log, copy)
    except OSError:
        copy.unlink(missing_ok=True)
    os.truncate(log, 0)
    return True


def cut_large_ones(folder: Path) -> None:
    """Bounds every log in `folder`."""
    for log in folder.glob("*.log"):
        cut_when_large(log)


def last_line(log: Path) -> str:
    """Returns the last line that is not blank, shortened, or an empty string."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        return last_line_of(file.read().decode(errors="replace"))
    return ""


def last_line_of(text: str) -> str:
    """Like `last_line`, for a text."""
    return next(
        (line.strip()[:_QUOTED] for line in reversed(text.splitlines()) if line.strip()), ""
    )


def show_ray(logs: Path, instance_directory: Path) -> None:
    """Links `logs/ray` to the logs of the running instance's newest session."""
    link = _clear_ray(logs)
    link.symlink_to(instance_directory / _RAY_SOURCE)


def keep_ray(logs: Path, instance_directory: Path, max_bytes: int = RAY_KEPT_BYTES) -> None:
    """Copies the newest logs of the instance to `logs/ray`, at most `max_bytes` in all."""
    source, target = (instance_directory / _RAY_SOURCE).resolve(), _clear_ray(logs)
    target.mkdir(mode=0o700)
    files = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
    room = max_bytes
    for path in sorted(files, key=lambda each: each.stat().st_mtime, reverse=True):
        room -= path.stat().st_size
        if room < 0:
            return
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def _clear_ray(logs: Path) -> Path:
    path = logs / "ray"
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
    return path
