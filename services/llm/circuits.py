"""The circuits of one replica, one for each provider and model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from common.circuit import Circuit, State
from contracts.llm.routing import Target


class Circuits:
    """The circuits of one replica. They outlive a reload of the routes.

    `turned` is called with the target and the new state when a circuit opens or closes.
    """

    def __init__(
        self, turned: Callable[[Target, State], None] = lambda _target, _state: None
    ) -> None:
        self._turned = turned
        self._circuits: dict[tuple[str, str], Circuit] = {}

    def of(self, target: Target) -> Circuit:
        """Returns the circuit of `target`, under the policy that it names."""
        circuit = self._circuits.get(target.key)
        if circuit is None:
            circuit = self._circuits[target.key] = Circuit(
                target.circuit, partial(self._turned, target)
            )
        circuit.policy = target.circuit
        return circuit

    def keep(self, targets: Iterable[Target]) -> None:
        """Forgets every circuit but those of `targets`."""
        keys = {target.key for target in targets}
        self._circuits = {key: circuit for key, circuit in self._circuits.items() if key in keys}
