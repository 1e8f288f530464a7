"""Progress of a build: one line for each long step, with its seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Writes `[models] <folder>: <step> … done in 2.1 s` to a stream; silent without one."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def say(self, text: str) -> None:
        """Writes one whole line."""
        self._write(f"[models] {text}\n")

    @contextmanager
    def step(self, folder: str, what: str) -> Iterator[None]:
        """Announces a step at once and completes its line when the step ends."""
        started = time.monotonic()
        self._write(f"[models] {folder}: {what} … ")
        try:
            yield
        except BaseException:
            self._write(f"failed after {time.monotonic() - started:.1f} s\n")
            raise
        self._write(f"done in {time.monotonic() - started:.1f} s\n")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
