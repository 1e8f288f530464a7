"""Routes of logical models: plain values, made from configuration and read by pure functions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from common.circuit import CircuitPolicy

StreamRecovery = Literal["error", "resume"]
Continuation = Literal["instruct", "vllm", "deepseek", "none"]
"""The dialect in which a provider is asked for the rest of an answer."""
Reasoning = Literal["opened"] | bool
"""Whether a model thinks before it answers; `opened`: its prompt opens the thought, so that the
answer begins inside it."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds granted to the phases of one upstream call.

    `first_token_s` runs from the request to the first content token of a stream; keep-alive frames
    do not satisfy it. `idle_s` runs between content tokens. `total_s` bounds one attempt, whatever
    the request asks for. While another target could answer, `handover_s` bounds the time without
    content, and `first_token_handover_s` the time to a stream's first content; a whole answer has
    no content before its end.
    """

    connect_s: float
    first_token_s: float
    idle_s: float
    total_s: float
    handover_s: float | None = None
    first_token_handover_s: float | None = None

    def whole_s(self) -> float:
        """How long a whole answer may take."""
        return self.total_s if self.handover_s is None else min(self.total_s, self.handover_s)

    def begin_s(self) -> float:
        """How long the first content of a stream may take."""
        bound = (
            self.first_token_s
            if self.handover_s is None
            else min(self.first_token_s, self.handover_s)
        )
        return (
            bound
            if self.first_token_handover_s is None
            else min(bound, self.first_token_handover_s)
        )

    def alone(self) -> Timeouts:
        """Returns the timeouts of a target that no other one could replace."""
        if self.handover_s is None and self.first_token_handover_s is None:
            return self
        return replace(self, handover_s=None, first_token_handover_s=None)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often one target is asked, and how long the waits between are.

    `attempts` counts the first one. The n-th wait lasts up to `backoff_s · 2ⁿ⁻¹` seconds, at most
    `max_backoff_s`. That also bounds a `Retry-After` while another target could answer.
    """

    attempts: int = 2
    backoff_s: float = 0.25
    max_backoff_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """A physical model of one provider.

    `logical_model` is the entry of the configuration that names it.

    `context_tokens` is how many tokens it holds, prompt and answer together; None where that is not
    known.
    """

    provider: str
    name: str
    timeouts: Timeouts
    retry: RetryPolicy = field(default=RetryPolicy())
    circuit: CircuitPolicy = field(default=CircuitPolicy())
    logical_model: str = ""
    reasoning: Reasoning = False
    context_tokens: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The unit of failure: the provider and its name of the model."""
        return self.provider, self.name


@dataclass(frozen=True, slots=True)
class Spill:
    """Where calls go while the primary target is busy.

    It is busy from a queue of `queue_depth` calls on until the queue is down to `return_depth`, and
    while it cannot be called.
    """

    targets: tuple[Target, ...]
    queue_depth: int
    return_depth: int


@dataclass(frozen=True)
class Route:
    """The targets of one logical model, in the order in which they are tried.

    `stream_recovery` says what follows when a stream breaks after its first content: an error in
    the stream, or the next target, which is asked to finish the answer.
    """

    logical_model: str
    targets: tuple[Target, ...]
    fallbacks: tuple[str, ...] = ()
    spill: Spill | None = None
    stream_recovery: StreamRecovery = "error"

    @property
    def primary(self) -> Target:
        """The target that the configuration names for this model."""
        return self.targets[0]

    @property
    def every_target(self) -> tuple[Target, ...]:
        """The targets, then those that calls spill over to."""
        return self.targets if self.spill is None else (*self.targets, *self.spill.targets)

    @cached_property
    def longest_s(self) -> float:
        """Seconds that suffice to try every target as often as its policy allows."""
        return sum(
            target.timeouts.total_s + target.retry.attempts * target.retry.max_backoff_s
            for target in self.every_target
        )
