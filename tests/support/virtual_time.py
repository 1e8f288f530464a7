"""An event loop whose clock jumps to its next timer: tests of hours run in milliseconds, and a busy
machine changes nothing in them.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _NoWait(selectors.DefaultSelector):
    """Notes how long the loop would have waited."""

    waited = 0.0

    def select(self, timeout=None):
        self.waited += timeout or 0.0
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For code without I/O."""

    def __init__(self) -> None:
        self._clock = _NoWait()
        super().__init__(self._clock)

    def time(self) -> float:
        """The seconds that were waited."""
        return self._clock.waited


def run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Returns what `work` returns; `asyncio.get_running_loop().time()` begins with 0."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
