"""The circuits of this process, one for each target of a tool."""

from __future__ import annotations

import math

from cachetools import LRUCache

from common.circuit import Circuit, CircuitPolicy

POLICY = CircuitPolicy(failures=5, share=math.inf, cooldown_s=5.0, max_cooldown_s=60.0)
"""Failures in a row alone open it: few tools are called often enough for a share of failures."""
MAX_CIRCUITS = 1_024


class ToolTargetCircuits(LRUCache[str, Circuit]):
    """Circuits by target; at the bound the least recently used is dropped."""

    def __init__(self) -> None:
        super().__init__(MAX_CIRCUITS)

    def __missing__(self, target: str) -> Circuit:
        circuit = self[target] = Circuit(POLICY)
        return circuit
