"""The attempts of one call: asks its targets in turn, retries, and reports to the circuits."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from common.circuit import Circuit, Permit, State
from contracts.deadline import Deadline
from contracts.errors import (
    CircuitOpen,
    ContextLengthExceeded,
    DaarionError,
    InvalidRequest,
    ModelUnavailable,
    UpstreamInvalidResponse,
)
from contracts.llm.ports import ChatProvider
from contracts.llm.routing import RetryPolicy, Target
from services.llm.accounting import CallAccount
from services.llm.failover import (
    HANDOVER_SHARE,
    FailoverDecision,
    blames_target,
    decide_failover,
    fitting_targets,
    pause_s,
    silence_counts_s,
)

T = TypeVar("T")
Ask = Callable[[ChatProvider, Target], Awaitable[T]]

ONCE = RetryPolicy(attempts=1)
PASSED_S = 0.005
"""A deadline this near counts as passed, because a timer may fire a little early."""


@dataclass(frozen=True, slots=True)
class Served(Generic[T]):
    """A target's result, and the permit of the call, which the receiver must end."""

    target: Target
    permit: Permit
    result: T


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


class RouteAttempts:
    """Tries the targets of one call in their order, each as often as its retry policy allows.

    `ask` makes the call; this class decides which target it is made to, and how often.
    `deadline_is_callers`: the deadline is the caller's `timeout_s`, not the route's sum of
    timeouts.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        providers: Mapping[str, ChatProvider],
        circuits: Circuits,
        account: CallAccount,
        *,
        deadline: Deadline,
        logical_model: str,
        deadline_is_callers: bool = False,
    ) -> None:
        self._model = logical_model
        self._remaining = deque(targets)
        self._providers = providers
        self._circuits = circuits
        self._account = account
        self.deadline = deadline
        self._deadline_is_callers = deadline_is_callers
        self._handover_s: float | None = None
        self._reasons: dict[str, str] = {}
        self._waits: list[float] = []

    def keep_targets(self, wanted: Callable[[ChatProvider], bool]) -> bool:
        """Keeps the remaining targets whose provider is wanted; returns whether any remain."""
        self._remaining = deque(
            target for target in self._remaining if wanted(self._providers[target.provider])
        )
        return bool(self._remaining)

    async def serve(self, ask: Ask[T]) -> Served[T]:
        """Returns the result of the first target that succeeds; a later call starts at the next
        target.

        Raises:
            ModelUnavailable: no target is configured.
            CircuitOpen: no target can be called now.
            Overloaded: the call's usage cannot be recorded; no target was called.
            DaarionError: the leaf of the last failure.
        """
        failure: DaarionError | None = None
        while self._remaining:
            outcome = await self._try_target(self._remaining.popleft(), ask)
            if isinstance(outcome, Served):
                return outcome
            if outcome is not None:
                failure = outcome
        raise failure or self._no_target()

    def can_continue_after(self, error: DaarionError) -> bool:
        """Whether another target may continue the answer after `error`."""
        return (
            not isinstance(error, InvalidRequest)
            and self._others()
            and self._decide(error, 1, ONCE).action == "next_target"
        )

    def failed(self, target: Target, permit: Permit, error: DaarionError) -> None:
        """Ends the running attempt as failed."""
        now = time.monotonic()
        if isinstance(error, InvalidRequest):
            permit.alive(now)  # a target that gives a reason is up
        if blames_target(error, cut_short=self._cut_short(target)):
            permit.failed(now)
        else:
            permit.released(now)
        if seconds := pause_s(error):
            self._circuits.of(target).pause_until(now + seconds)
        begun = isinstance(error, UpstreamInvalidResponse) and error.begun
        self._account.attempt_ended(error.type, worked=begun)

    async def _try_target(self, target: Target, ask: Ask[T]) -> Served[T] | DaarionError | None:
        """Returns the answer of one target, or its last failure; None when it was not called."""
        provider = self._providers[target.provider]
        if (reason := provider.unavailable_reason()) is not None:
            self._reasons[target.provider] = reason
            self._account.skipped(target, ModelUnavailable.type)
            return None
        failure: DaarionError | None = None
        tries = 0
        while (permit := self._circuits.of(target).enter(time.monotonic())) is not None:
            tries += 1
            try:
                self._account.attempt(target)
            except DaarionError:
                permit.released(time.monotonic())
                raise
            try:
                with self._account.spans.within():
                    answer = await ask(provider, self._with_handover_timeout(target))
                return Served(target, permit, answer)
            except DaarionError as error:
                failure = error
            except BaseException:
                permit.released(time.monotonic())
                raise
            self.failed(target, permit, failure)
            if isinstance(failure, ContextLengthExceeded):
                self._remaining = deque(
                    fitting_targets(self._remaining, target, self._account.needed_tokens())
                )
            decision = self._decide(failure, tries, target.retry)
            if decision.action == "raise":
                raise failure
            if decision.action == "next_target":
                return failure
            await asyncio.sleep(decision.wait_s)
        self._waits.append(self._circuits.of(target).wait_s(time.monotonic()))
        self._account.skipped(target, CircuitOpen.type)
        return failure

    def _with_handover_timeout(self, target: Target) -> Target:
        """Returns `target` with its handover timeout while another target could answer instead."""
        timeouts = configured = target.timeouts
        if not self._remaining or not self._others(ready=True):
            timeouts = configured.alone()
        elif self._deadline_is_callers:
            timeouts = replace(configured, handover_s=self.deadline.remaining() * HANDOVER_SHARE)
        self._handover_s = timeouts.handover_s
        return target if timeouts is configured else replace(target, timeouts=timeouts)

    def _cut_short(self, target: Target) -> bool:
        """Whether the caller's deadline or the handover timeout ended the attempt too early to
        blame the target. A provider that reports its load is known to be alive.
        """
        silent_s = self._account.silent_s()
        handed_over = self._handover_s is not None and silent_s >= self._handover_s - PASSED_S
        if self._remaining_s() > 0 and not handed_over:
            return False
        known_alive = self._providers[target.provider].condition(target).load is not None
        return known_alive or silent_s < silence_counts_s(target.timeouts)

    def _decide(self, error: DaarionError, tries: int, retry: RetryPolicy) -> FailoverDecision:
        jitter = random.random()  # noqa: S311  # spreads waits; not a secret
        return decide_failover(
            error,
            tries=tries,
            retry=retry,
            others=self._others(),
            remaining_s=self._remaining_s(),
            jitter=jitter,
        )

    def _others(self, *, ready: bool = False) -> bool:
        """Whether a remaining target could be called now; with `ready`, one that is not known to be
        away.
        """
        now = time.monotonic()
        for target in self._remaining:
            provider = self._providers[target.provider]
            if (
                provider.unavailable_reason() is not None
                or self._circuits.of(target).wait_s(now) > 0
            ):
                continue
            if not ready or provider.condition(target).not_ready is None:
                return True
        return False

    def _remaining_s(self) -> float:
        remaining = self.deadline.remaining()
        return 0.0 if remaining < PASSED_S else remaining

    def _no_target(self) -> DaarionError:
        if self._waits:
            wait = max(1, math.ceil(min(self._waits)))
            return CircuitOpen(
                f"every provider of this model is left alone after failures: retry in {wait} s",
                retry_after_s=wait,
            )
        listed = "; ".join(
            f"provider `{provider}`: {reason}" for provider, reason in self._reasons.items()
        )
        return ModelUnavailable(f"model `{self._model}` is not available: {listed}")
