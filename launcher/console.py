"""Lines for the operator, with the seconds since the start."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TextIO


class Console:
    """Writes one line at a time; ignores a closed terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Writes `[ 12 s] text`."""
        self.plain(f"[{time.monotonic() - self._began:4.0f} s] {text}")

    def plain(self, text: str) -> None:
        """Writes the text as it is."""
        with suppress(OSError, ValueError):
            self._stream.write(f"{text}\n")
            self._stream.flush()
