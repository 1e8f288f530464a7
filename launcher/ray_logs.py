"""The logs of Ray and of the replicas, found in `logs/ray` during a run and after it.

Ray writes them into the instance's directory. While the graph runs, `logs/ray` is a link to them;
when it has stopped, or was found dead, the newest of them are copied there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

KEPT_BYTES = 50 << 20
_NAME = "ray"
_SOURCE = Path("ray/session_latest/logs")  # below an instance's directory


def show(logs: Path, instance_directory: Path) -> None:
    """Links `logs/ray` to the logs of the running instance's newest session."""
    link = _clear(logs)
    link.symlink_to(instance_directory / _SOURCE)


def keep(logs: Path, instance_directory: Path, max_bytes: int = KEPT_BYTES) -> None:
    """Copies the newest logs of the instance to `logs/ray`, at most `max_bytes` in all."""
    source, target = (instance_directory / _SOURCE).resolve(), _clear(logs)
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


def _clear(logs: Path) -> Path:
    path = logs / _NAME
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
    return path
