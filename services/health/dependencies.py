"""Probes dependencies in the background: health routes answer at once and pile up no probes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from common.periodic import start_periodic
from common.tasks import end_tasks
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.health import HEALTHY, Check, Health, State

Probe = Callable[[], Awaitable[object]]
"""Returns when the dependency answers (`asleep` when it sleeps), else raises; the message of a
DaarionError is shown.
"""

PROBE_INTERVAL_S = 2.0
PROBE_INTERVAL_UNREADY_S = 0.5
PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Dependency:
    """What an application needs (`required`) or only uses."""

    probe: Probe
    required: bool = True


@dataclass(slots=True)
class _Observed:
    state: State
    reason: str | None
    probed_at: float
    since: float
    was_ready: bool = False


class HealthMonitor:
    """Probes each dependency every two seconds, twice a second while it is not ready."""

    def __init__(self, dependencies: Mapping[str, Dependency], events: EventLog) -> None:
        now = time.monotonic()
        self._events = events
        self._dependencies = dict(dependencies)
        self._seen = {
            name: _Observed("starting", "not probed yet", now, now) for name in dependencies
        }
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def names(self) -> frozenset[str]:
        """The names of the dependencies."""
        return frozenset(self._dependencies)

    def start(self) -> None:
        """Starts probing; must be called on the running event loop."""
        self._tasks = [
            start_periodic(
                partial(self._probe, name),
                PROBE_INTERVAL_S,
                partial(self._failed, name),
                name=f"health:{name}",
                at_once=True,
                retry_s=(PROBE_INTERVAL_UNREADY_S, PROBE_INTERVAL_UNREADY_S),
            )
            for name in self._dependencies
        ]

    async def close(self) -> None:
        """Stops probing."""
        await end_tasks(self._tasks)

    def health(self) -> Health:
        """Returns the latest results."""
        now = time.monotonic()
        checks = {
            name: Check(
                state=seen.state,
                required=self._dependencies[name].required,
                age_s=round(now - seen.probed_at, 1),
                since_s=round(now - seen.since, 1),
                reason=seen.reason,
            )
            for name, seen in self._seen.items()
        }
        return summarise(checks)

    async def _probe(self, name: str) -> None:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            answer = await self._dependencies[name].probe()
        self._note(name, None, "asleep" if answer == "asleep" else "ready")

    def _failed(self, name: str, error: Exception, _seconds: float) -> None:
        if isinstance(error, TimeoutError):
            reason = f"no answer within {PROBE_TIMEOUT_S:g} s"
        else:
            reason = error.message if isinstance(error, DaarionError) else type(error).__name__
        self._note(name, reason)

    def _note(self, name: str, reason: str | None, state: State | None = None) -> None:
        seen, now = self._seen[name], time.monotonic()
        state = state or ("unavailable" if seen.was_ready else "starting")
        if state != seen.state:
            seen.since = now
        seen.state, seen.reason, seen.probed_at = state, reason, now
        seen.was_ready = seen.was_ready or state in HEALTHY
        up = ("daarion_dependency_up", {"dependency": name}, float(state in HEALTHY))
        self._events.emit("metrics.sampled", samples=[up])


def summarise(checks: dict[str, Check]) -> Health:
    """Returns the status that follows from the checks."""
    required = {check.state for check in checks.values() if check.required}
    if "unavailable" in required:
        return Health(status="unavailable", checks=checks)
    if "starting" in required:
        return Health(status="starting", checks=checks)
    optional_away = any(check.state not in HEALTHY for check in checks.values())
    return Health(status="degraded" if optional_away else "ready", checks=checks)
