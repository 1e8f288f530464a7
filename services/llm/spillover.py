"""Spill-over: while a model's own engine is busy, calls go to other models, and come back when its queue has drained. Pure.

Own targets come in the configured order; those that calls spill over to by price where it is known, else as configured.

| The primary target is | Order |
|---|---|
| calm | own targets, then spill targets that can be called, then those that cannot |
| busy | spill targets that can be called, own targets, spill targets that cannot |

It is busy from `queue_depth` waiting calls on until `return_depth` are left, while no engine is ready, and while it cannot be
called: its circuit is open, its provider throttles us, or said that nothing is left of our quota there. Of the spill targets that can
be called, those come last of whose quota less than `LOW_QUOTA` is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.llm.ports import Condition
from contracts.llm.routing import Spill, Target

LOW_QUOTA = 0.05


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target, whether it can be called now, its price (dollars for a million tokens), and the share that is left of our quota there.

    None: unknown.
    """

    target: Target
    callable_now: bool
    price: float | None = None
    quota_left: float | None = None


def order_targets(
    own: Sequence[Candidate], spill: Sequence[Candidate], *, busy: bool
) -> tuple[Target, ...]:
    """Returns every target once, in the order in which they should be tried."""
    others = sorted(spill, key=_by_quota_and_price)
    ready = [each for each in others if each.callable_now]
    away = [each for each in others if not each.callable_now]
    found: dict[tuple[str, str], Target] = {}
    for each in (*ready, *own, *away) if busy else (*own, *ready, *away):
        found.setdefault(each.target.key, each.target)
    return tuple(found.values())


def _by_quota_and_price(candidate: Candidate) -> tuple[bool, float]:
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
    """Remembers for each logical model whether its calls spill over now, so that they do not go to and fro."""

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def busy(self, logical_model: str, spill: Spill, depth: float, *, callable_now: bool) -> bool:
        """Returns whether the primary target is busy, given its queue's depth and whether it can be called."""
        bound = spill.return_depth + 1 if logical_model in self._busy else spill.queue_depth
        is_busy = not callable_now or depth >= bound
        (self._busy.add if is_busy else self._busy.discard)(logical_model)
        return is_busy
