"""A sliding window over units. Pure; time comes in as an argument."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

CELLS_PER_WINDOW = 600


class SlidingWindow:
    """Units used within the last `window_s` seconds, on a grid of `cells` cells.

    A unit counts as if used at the end of its cell: at most one cell too long, never too short.
    """

    def __init__(self, window_s: float, cells: int = CELLS_PER_WINDOW) -> None:
        self._window = window_s
        self._width = window_s / cells
        self._cells: deque[list[int]] = deque()
        self._used = 0

    def add(self, moment: float, units: int) -> None:
        """Counts `units` at `moment`, which may lie in the past."""
        if units <= 0:
            return
        cell = math.ceil(moment / self._width)
        at = len(self._cells)
        while at and self._cells[at - 1][0] > cell:
            at -= 1
        if at and self._cells[at - 1][0] == cell:
            self._cells[at - 1][1] += units
        else:
            self._cells.insert(at, [cell, units])
        self._used += units

    def take_back(self, units: int) -> None:
        """Removes `units`, newest first."""
        while units > 0 and self._cells:
            last = self._cells[-1]
            taken = min(units, last[1])
            last[1] -= taken
            self._used -= taken
            units -= taken
            if not last[1]:
                self._cells.pop()

    def used(self, now: float) -> int:
        """Returns the units that still count at `now`."""
        while self._cells and self._cells[0][0] * self._width <= now - self._window:
            self._used -= self._cells.popleft()[1]
        return self._used

    def free_in_s(self, units: int, now: float) -> float | None:
        """Seconds until at least `units` have stopped counting; None when fewer count."""
        self.used(now)
        for cell, counted in self._cells:
            units -= counted
            if units <= 0:
                return cell * self._width + self._window - now
        return None

    def empty_in_s(self, now: float) -> float:
        """Seconds until nothing counts any more."""
        self.used(now)
        return self._cells[-1][0] * self._width + self._window - now if self._cells else 0.0

    def ages(self, now: float) -> Iterator[tuple[float, int]]:
        """Yields (seconds ago, units), oldest first; an age is never more than the real one."""
        self.used(now)
        for cell, units in self._cells:
            yield max(0.0, now - cell * self._width), units
