"""The children's log files: rotated at each start, cut when they exceed a bound."""

from __future__ import annotations

import shutil
from pathlib import Path

MAX_BYTES = 20 << 20
_GENERATIONS = 3
_QUOTED = 200


def begin(log: Path) -> None:
    """Moves the log of the last run aside (`.1` … `.3`, the oldest is dropped)."""
    if not log.exists() or log.stat().st_size == 0:
        return
    for number in range(_GENERATIONS - 1, 0, -1):
        older = _numbered(log, number)
        if older.exists():
            older.replace(_numbered(log, number + 1))
    log.replace(_numbered(log, 1))


def cut_when_large(log: Path, max_bytes: int = MAX_BYTES) -> bool:
    """Copies a log over the bound to `.1` and truncates it; the child appends to the same file.

    Lines written between copy and truncation are lost: the price of needing no help from the
    child. On a full disk the log is truncated without a copy, which frees space.
    """
    if not log.exists() or log.stat().st_size <= max_bytes:
        return False
    copy = _numbered(log, 1)
    try:
        shutil.copy2(log, copy)
    except OSError:
        copy.unlink(missing_ok=True)
    with log.open("r+b") as file:
        file.truncate(0)
    return True


def cut_large_ones(folder: Path) -> None:
    """Bounds every log in `folder`."""
    for log in folder.glob("*.log"):
        cut_when_large(log)


def last_line(log: Path) -> str:
    """Returns the last line that is not blank, shortened, or an empty string."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return last_line_of(text)


def last_line_of(text: str) -> str:
    """Like `last_line`, for a text."""
    return next(
        (line.strip()[:_QUOTED] for line in reversed(text.splitlines()) if line.strip()), ""
    )


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
