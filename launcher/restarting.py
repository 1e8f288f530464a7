"""When a dead process is restarted, and when it is given up. Pure: the caller passes the time."""

from __future__ import annotations

from collections import deque

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
HEALTHY_S = 60.0
"""A process that lived this long is restarted after the first delay again."""
LIMIT = 5
WINDOW_S = 120.0


class Failures:
    """The deaths of one process: too many after 5 within two minutes, or 5 without a success."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=LIMIT)
        self._in_a_row = 0
        self._next_s = FIRST_DELAY_S

    def add(self, now: float, lived_s: float) -> float:
        """Counts a death; returns the seconds to wait before the restart, which double."""
        self._times.append(now)
        self._in_a_row += 1
        delay = FIRST_DELAY_S if lived_s >= HEALTHY_S else self._next_s
        self._next_s = min(delay * 2, LONGEST_DELAY_S)
        return delay

    def succeeded(self) -> None:
        self._in_a_row = 0

    @property
    def too_many(self) -> bool:
        within = len(self._times) == LIMIT and self._times[-1] - self._times[0] <= WINDOW_S
        return within or self._in_a_row >= LIMIT
