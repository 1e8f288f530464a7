"""The children's log files: rotated at each start, cut when they exceed a bound."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_BYTES = 20 << 20
_GENERATIONS = 3
_QUOTED = 200


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
