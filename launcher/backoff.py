"""When to restart a dead process, and when to give it up. Pure: the caller passes the time."""

from __future__ import annotations

from collections import deque


class Backoff:
    """Delays that double from `first_s` to `longest_s`; a life of `healthy_s` resets them."""

    def __init__(
        self, first_s: float = 0.5, longest_s: float = 30.0, healthy_s: float = 60.0
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._healthy_s = healthy_s
        self._next_s = first_s

    def after(self, lived_s: float) -> float:
        """Returns the seconds to wait before restarting a process that lived for `lived_s`."""
        if lived_s >= self._healthy_s:
            self._next_s = self._first_s
        delay = self._next_s
        self._next_s = min(delay * 2, self._longest_s)
        return delay


class FailureWindow:
    """Counts failures: full after `limit` of them within `seconds`, or without a success."""

    def __init__(self, limit: int = 5, seconds: float = 120.0) -> None:
        self.limit = limit
        self.seconds = seconds
        self._times: deque[float] = deque(maxlen=limit)
        self._in_a_row = 0

    def add(self, now: float) -> None:
        self._times.append(now)
        self._in_a_row += 1

    def succeeded(self) -> None:
        self._in_a_row = 0

    @property
    def full(self) -> bool:
        within = len(self._times) == self.limit and self._times[-1] - self._times[0] <= self.seconds
        return within or self._in_a_row >= self.limit
