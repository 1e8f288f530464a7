"""A circuit per target: failures in a row open it, calls then fail at once, a probe closes it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

THRESHOLD = 5
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
MAX_CIRCUITS = 1_024


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    open_until: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    probing: bool = False


class ToolTargetCircuits:
    """The circuits of this process by target; at the bound the least recently used is dropped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._circuits: OrderedDict[str, _Circuit] = OrderedDict()

    def refused_for_s(self, target: str) -> float | None:
        """Returns the seconds until the next probe, or None if a call may go out.

        After None, `report` or `forget` must follow.
        """
        circuit = self._of(target)
        if circuit.failures < THRESHOLD:
            return None
        remaining = circuit.open_until - self._clock()
        if remaining > 0 or circuit.probing:
            return max(remaining, 1.0)
        circuit.probing = True
        return None

    def report(self, target: str, *, failed: bool) -> None:
        """Records how a call ended. A failed probe doubles the pause."""
        circuit = self._of(target)
        if not failed:
            self._circuits.pop(target, None)
            return
        circuit.failures += 1
        if circuit.failures < THRESHOLD:
            return
        if circuit.probing:
            circuit.pause_s = min(2 * circuit.pause_s, LONGEST_PAUSE_S)
        circuit.probing = False
        circuit.open_until = self._clock() + circuit.pause_s

    def forget(self, target: str) -> None:
        """Records a call that says nothing about the target: it was cancelled, or refused here."""
        self._of(target).probing = False

    def _of(self, target: str) -> _Circuit:
        circuit = self._circuits.setdefault(target, _Circuit())
        self._circuits.move_to_end(target)
        while len(self._circuits) > MAX_CIRCUITS:
            self._circuits.popitem(last=False)
        return circuit
