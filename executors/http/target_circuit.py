"""The circuits of this process, one for each target of a tool."""

from __future__ import annotations

import math

from cachetools import LRUCache

from common.circuit import Circuit, CircuitPolicy

POLICY = CircuitPolicy(failures=5, share=math.inf, cooldown_s=5.0, max_cooldown_s=60.0)
"""Failures in a row alone open it: few tools are called often enough for a share of failures."""
MAX_CIRCUITS = 1_024


class ToolTargetCircuits:
    """Circuits by target; at the bound the least recently used is dropped."""

    def __init__(self) -> None:
        self._circuits = LRUCache[str, Circuit](MAX_CIRCUITS)

    def __len__(self) -> int:
        return len(self._circuits)

    def of(self, target: str) -> Circuit:
        """Returns the circuit of `target`."""
        circuit = self._circuits.get(target)
        if circuit is None:
            circuit = self._circuits[target] = Circuit(POLICY)
        return circuit
