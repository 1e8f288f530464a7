"""The parts of `llm.yaml` about failures: timeouts, retries, circuits, spill-over."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from contracts.shapes import Strict

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")
]
Seconds = Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)]


class _Inherited(Strict):
    """A group of values; absent ones are inherited: model over provider over file."""

    def over(self, base: Self) -> Self:
        """Returns these values, with those of `base` for absent ones."""
        return base.model_copy(update=self.model_dump(exclude_none=True))


class TimeoutSettings(_Inherited):
    """Phases of one upstream call in seconds; see Timeouts."""

    connect_s: Seconds | None = None
    first_token_s: Seconds | None = None
    idle_s: Seconds | None = None
    total_s: Seconds | None = None
    handover_s: Seconds | None = None
    first_token_handover_s: Seconds | None = None


class RetrySettings(_Inherited):
    """Calls of one target (`attempts`, the first included) and pauses between; see RetryPolicy."""

    attempts: Annotated[int, Field(ge=1, le=10)] | None = None
    backoff_s: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] | None = None
    max_backoff_s: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] | None = None


class CircuitSettings(_Inherited):
    """When a target's circuit opens, and for how long; see CircuitPolicy."""

    failures: Annotated[int, Field(ge=1, le=10_000)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    calls: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    window_s: Seconds | None = None
    cooldown_s: Seconds | None = None
    max_cooldown_s: Seconds | None = None


class SpillSettings(Strict):
    """The logical models that take over while the primary target is busy or cannot be called.

    It counts as busy from `queue_depth` waiting calls until they fall to `return_depth` (by default
    to half of `queue_depth`).
    """

    to: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16)]
    queue_depth: Annotated[int, Field(ge=1, le=100_000)]
    return_depth: Annotated[int, Field(ge=0, le=100_000)] | None = None

    @model_validator(mode="after")
    def _returns_below(self) -> SpillSettings:
        if self.return_depth is not None and self.return_depth >= self.queue_depth:
            raise ValueError(
                "`return_depth` must be below `queue_depth`, or calls would switch back and forth"
            )
        return self

    def drained_at(self) -> int:
        """The depth at which calls return to the primary target."""
        return self.queue_depth // 2 if self.return_depth is None else self.return_depth


DEFAULT_TOTAL_S = 120.0
DEFAULT_TIMEOUTS = TimeoutSettings(
    connect_s=5, first_token_s=60, idle_s=30, total_s=DEFAULT_TOTAL_S
)
DEFAULT_FIRST_TOKEN_HANDOVER_S = 12.0
"""For remote models not marked `reasoning`; the graph's own engine reports its queue instead."""
DEFAULT_RETRY = RetrySettings(attempts=2, backoff_s=0.25, max_backoff_s=2)
DEFAULT_CIRCUIT = CircuitSettings(
    failures=5, share=0.5, calls=20, window_s=30, cooldown_s=5, max_cooldown_s=8
)
