"""A request's deadline, which every call made for it shares."""

from __future__ import annotations

import time
from dataclasses import dataclass

from contracts.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at` is in seconds of `time.monotonic()`; `seconds` is the original budget, for messages."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Returns the deadline `seconds` from now."""
        return cls(time.monotonic() + seconds, seconds)

    def remaining(self) -> float:
        """Remaining seconds, never negative."""
        return max(0.0, self.at - time.monotonic())

    def at_most(self, seconds: float) -> float:
        """The shorter of `seconds` and the remaining time."""
        return min(seconds, self.remaining())

    def sooner(self, seconds: float) -> Deadline:
        """The earlier of this deadline and the one `seconds` from now."""
        other = Deadline.after(seconds)
        return other if other.at < self.at else self

    def check(self) -> None:
        """Raises DeadlineExceeded once the deadline has passed."""
        if self.remaining() <= 0:
            raise self.exceeded()

    def exceeded(self) -> DeadlineExceeded:
        """The error for a passed deadline."""
        return DeadlineExceeded(
            f"no answer within {self.seconds:g} s: raise `timeout_s`, or ask for less"
        )
