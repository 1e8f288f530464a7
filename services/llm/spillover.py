"""Spill-over: while a model's own engine is busy, its calls go to other models. Pure.

Own targets come in the configured order; spill targets by price where it is known, else as
configured.

    the primary target is   order
    calm                    own targets, callable spill targets, the other spill targets
    busy                    callable spill targets, own targets, the other spill targets

It is busy from `queue_depth` waiting calls until `return_depth` are left, while no engine is ready,
and while it cannot be called: its circuit is open, its provider throttles us, or our quota there is
used up. Callable spill targets below `LOW_QUOTA` come last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.llm.ports import Condition
from contracts.llm.routing import Spill, Target

LOW_QUOTA = 0.05


@dataclass(frozen=True, slots=True)
class TargetCandidate:
    """A target with its state; None is unknown.

    `price` is in dollars for a million tokens, `quota_left` the share of our quota there.
    """

    target: Target
    callable_now: bool
    price: float | None = None
    quota_left: float | None = None


def order_targets(
    own: Sequence[TargetCandidate], spill: Sequence[TargetCandidate], *, busy: bool
) -> tuple[Target, ...]:
    """Returns every target once, in the order in which they should be tried."""
    others = sorted(spill, key=_by_quota_and_price)
    ready = [each for each in others if each.callable_now]
    away = [each for each in others if not each.callable_now]
    found: dict[tuple[str, str], Target] = {}
    for each in (*ready, *own, *away) if busy else (*own, *ready, *away):
        found.setdefault(each.target.key, each.target)
    return tuple(found.values())


def _by_quota_and_price(candidate: TargetCandidate) -> tuple[bool, float]:
    is_scarce = candidate.quota_left is not None and candidate.quota_left < LOW_QUOTA
    return is_scarce, math.inf if candidate.price is None else candidate.price


def queue_depth(condition: Condition) -> float:
    """Returns how many calls wait at the engine behind `condition`, by its last report.

    Infinite while no engine is ready, zero where nothing is known.
    """
    if condition.not_ready is not None:
        return math.inf
    return 0 if condition.load is None else condition.load.waiting


class Spillover:
    """Remembers which logical models spill over: they stop at a lower depth than they began."""

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def busy(self, logical_model: str, spill: Spill, depth: float, *, callable_now: bool) -> bool:
        """Whether the primary target is busy: its queue is deep, or it cannot be called."""
        bound = spill.return_depth + 1 if logical_model in self._busy else spill.queue_depth
        is_busy = not callable_now or depth >= bound
        (self._busy.add if is_busy else self._busy.discard)(logical_model)
        return is_busy
