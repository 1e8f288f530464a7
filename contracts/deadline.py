"""A point on the monotonic clock that travels with a request to every call made for it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from contracts.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at` is in seconds of `time.monotonic()`; `seconds` is the budget it was made with, for messages."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Returns the deadline `seconds` from now."""
        return cls(time.monotonic() + seconds, seconds)

    def remaining(self) -> float:
        """Seconds left; never negative."""
        return max(0.0, self.at - time.monotonic())

    def at_most(self, seconds: float) -> float:
        """The shorter of `seconds` and what is left."""
        return min(seconds, self.remaining())

    def sooner(self, seconds: float) -> Deadline:
        """This deadline, or the one `seconds` from now where that comes first."""
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
