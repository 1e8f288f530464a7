"""Where a logical model leads: plain values, made from configuration and read by pure functions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds granted to the phases of one upstream call.

    `first_token_s` runs from the request to the first content token of a stream; keep-alive frames do not satisfy it.
    `idle_s` runs between content tokens. `total_s` bounds one attempt, whatever the request asks for.
    """

    connect_s: float
    first_token_s: float
    idle_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Target:
    """A physical model of one provider."""

    provider: str
    name: str
    timeouts: Timeouts


@dataclass(frozen=True, slots=True)
class Route:
    """The targets of one logical model in the order in which they are tried; the first is the primary one."""

    logical_model: str
    targets: tuple[Target, ...]
    fallbacks: tuple[str, ...] = ()

    @property
    def primary(self) -> Target:
        """The target that the configuration names for this model."""
        return self.targets[0]
