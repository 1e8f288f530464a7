"""Circuit breakers: a target that fails repeatedly is left alone for a while.

Pure; time comes in as an argument.

    closed ──(consecutive failures, or their share in a window)──► open
    open ──(cool-down)──► half-open
    half-open ──(the probe succeeds)──► closed
    half-open ──(the probe fails: cool-down × 2)──► open

An open circuit refuses calls to its target; a half-open one lets one call through as a probe. The
cool-down is counted from the start of the probe that failed, and a probe that hangs blocks the next
one for at most `max_cooldown_s`. So a target that recovered is called within `max_cooldown_s`,
whether it had refused calls or never answered them. A target is also left alone after its provider
sent a `Retry-After`, until that has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half_open"]
CELLS = 10
_MAX_DOUBLINGS = 16
PROBE_RETRY_S = 1.0
"""Reported as the wait while a probe runs, whose end is unknown."""


@dataclass(frozen=True, slots=True)
class CircuitPolicy:
    """When a target's circuit opens, and for how long.

    The circuit opens after `failures` in a row, or once `share` of at least `calls` within
    `window_s` seconds failed. It is probed after `cooldown_s`, which doubles with each failed probe
    up to `max_cooldown_s`.
    """

    failures: int = 5
    share: float = 0.5
    calls: int = 20
    window_s: float = 30.0
    cooldown_s: float = 5.0
    max_cooldown_s: float = 8.0


class Circuit:
    """One target's circuit; `in_flight` counts this replica's running calls to the target."""

    def __init__(
        self, policy: CircuitPolicy, turned: Callable[[State], None] = lambda _: None
    ) -> None:
        self.policy = policy
        self._turned = turned
        self.in_flight = 0
        self._state: State = "closed"
        self._epoch = 0
        self._in_a_row = 0
        self._cells: deque[list[float]] = deque()  # each: cell number, calls, failures
        self._opened_at = self._closed_at = float("-inf")
        self._failed_openings = 0
        self._probe: Permit | None = None
        self._probed_at = float("-inf")
        self._paused_until = float("-inf")

    def state(self, now: float) -> State:
        """Returns the state; an open circuit whose cool-down is over is half-open."""
        if self._state == "open" and now >= self._opened_at + self._cooldown_s():
            return "half_open"
        return self._state

    def wait_s(self, now: float) -> float:
        """Returns the seconds until a call is allowed; zero when it is allowed now."""
        paused_s = max(0.0, self._paused_until - now)
        if self._state == "closed":
            return paused_s
        if self._probe is not None and now < self._probed_at + self.policy.max_cooldown_s:
            return max(paused_s, PROBE_RETRY_S)
        return max(paused_s, self._opened_at + self._cooldown_s() - now)

    def enter(self, now: float) -> Permit | None:
        """Returns a permit to call the target, which the caller must end; None when not allowed."""
        if self._state == "closed":
            if now < self._paused_until:
                return None
        elif self.wait_s(now) > 0:
            return None
        permit = Permit(self, self._epoch)
        self.in_flight += 1
        if self._state != "closed":
            self._state, self._probe, self._probed_at = "half_open", permit, now
        return permit

    def pause_until(self, moment: float) -> None:
        """Keeps calls away until `moment`, as the provider asked."""
        self._paused_until = max(self._paused_until, moment)

    def _alive(self, permit: Permit, now: float) -> None:
        if self._judges(permit):
            self._close(now)
            permit.epoch = self._epoch

    def _end(self, permit: Permit, now: float, *, failed: bool | None) -> None:
        self.in_flight -= 1
        if self._judges(permit):
            if failed is False:
                self._close(now)
            elif permit is self._probe:  # a newer probe replaced one that hung: only it decides
                self._probe = None
                if failed:
                    self._open(self._probed_at)
        elif failed is not None and self._state == "closed" and permit.epoch == self._epoch:
            self._count(now, failed=failed)

    def _judges(self, permit: Permit) -> bool:
        """Whether `permit` probes this half-open state; calls before it have an older epoch."""
        return self._state == "half_open" and permit.epoch == self._epoch

    def _count(self, now: float, *, failed: bool) -> None:
        self._add(now, failed=failed)
        if not failed:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        policy = self.policy
        calls, failures = sum(cell[1] for cell in self._cells), sum(cell[2] for cell in self._cells)
        if self._in_a_row >= policy.failures or (
            calls >= policy.calls and failures >= policy.share * calls
        ):
            if now - self._closed_at > policy.window_s:
                self._failed_openings = 0  # it was healthy for a window: forget the last outage
            self._open(now)

    def _add(self, now: float, *, failed: bool) -> None:
        cells, number = self._cells, now // (self.policy.window_s / CELLS)
        if not cells or cells[-1][0] != number:
            cells.append([number, 0, 0])
        cells[-1][1] += 1
        cells[-1][2] += failed
        while cells[0][0] <= number - CELLS:
            cells.popleft()

    def _open(self, now: float) -> None:
        self._turn("open")
        self._failed_openings += 1
        self._opened_at = now

    def _close(self, now: float) -> None:
        self._turn("closed")
        self._closed_at = now
        self._cells.clear()

    def _turn(self, state: State) -> None:
        self._state, self._in_a_row, self._epoch, self._probe = state, 0, self._epoch + 1, None
        self._turned(state)

    def _cooldown_s(self) -> float:
        growth: float = 2.0 ** min(max(0, self._failed_openings - 1), _MAX_DOUBLINGS)
        return min(self.policy.cooldown_s * growth, self.policy.max_cooldown_s)


class Permit:
    """The right to make one call. The first outcome ends it; further ones are ignored."""

    __slots__ = ("_circuit", "_ended", "epoch")

    def __init__(self, circuit: Circuit, epoch: int) -> None:
        self._circuit = circuit
        self._ended = False
        self.epoch = epoch

    def alive(self, now: float) -> None:
        """The target answers, though not to the end yet: a half-open circuit closes."""
        if not self._ended:
            self._circuit._alive(self, now)  # noqa: SLF001  # a permit is a part of its circuit

    def succeeded(self, now: float) -> None:
        """The call succeeded."""
        self.finish(now, failed=False)

    def failed(self, now: float) -> None:
        """The target failed."""
        self.finish(now, failed=True)

    def released(self, now: float) -> None:
        """Nothing was learned about the target: the caller left, or its request was at fault."""
        self.finish(now, failed=None)

    def finish(self, now: float, *, failed: bool | None) -> None:
        """Whether the target failed; None: nothing was learned about it."""
        if not self._ended:
            self._ended = True
            self._circuit._end(self, now, failed=failed)  # noqa: SLF001  # as above
