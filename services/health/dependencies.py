"""Looks at dependencies in the background, so that a health route answers at once and never piles up probes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from common.tasks import end_tasks
from contracts.errors import DaarionError
from contracts.health import Check, Health, State

Probe = Callable[[], Awaitable[None]]
"""Returns when the dependency answers; raises when it does not. The message of a DaarionError is shown."""

PROBE_INTERVAL_S = 2.0
PROBE_INTERVAL_UNREADY_S = 0.5
PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Dependency:
    """A thing an application needs (`required`) or only uses."""

    probe: Probe
    required: bool = True


@dataclass(slots=True)
class _Seen:
    state: State
    reason: str | None
    looked_at: float
    since: float
    was_ready: bool = False


class HealthMonitor:
    """Probes each dependency every two seconds, twice a second while it is not ready."""

    def __init__(self, dependencies: Mapping[str, Dependency]) -> None:
        now = time.monotonic()
        self._dependencies = dict(dependencies)
        self._seen = {
            name: _Seen("starting", "not looked at yet", now, now) for name in dependencies
        }
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def names(self) -> frozenset[str]:
        """What is looked at."""
        return frozenset(self._dependencies)

    def start(self) -> None:
        """Begins to look; must be called on the running event loop."""
        self._tasks = [
            asyncio.create_task(self._watch(name), name=f"health:{name}")
            for name in self._dependencies
        ]

    async def close(self) -> None:
        """Stops looking."""
        await end_tasks(self._tasks)

    def health(self) -> Health:
        """Returns what was seen last."""
        now = time.monotonic()
        checks = {
            name: Check(
                state=seen.state,
                required=self._dependencies[name].required,
                age_s=round(now - seen.looked_at, 1),
                since_s=round(now - seen.since, 1),
                reason=seen.reason,
            )
            for name, seen in self._seen.items()
        }
        return summarise(checks)

    async def _watch(self, name: str) -> None:
        while True:
            await self._look(name)
            ready = self._seen[name].state == "ready"
            await asyncio.sleep(PROBE_INTERVAL_S if ready else PROBE_INTERVAL_UNREADY_S)

    async def _look(self, name: str) -> None:
        reason: str | None = None
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._dependencies[name].probe()
        except TimeoutError:
            reason = f"no answer within {PROBE_TIMEOUT_S:g} s"
        except DaarionError as error:
            reason = error.message
        except Exception as error:  # noqa: BLE001  # a probe must not end the watch; the kind of failure is what can be told
            reason = type(error).__name__
        self._note(name, reason)

    def _note(self, name: str, reason: str | None) -> None:
        seen, now = self._seen[name], time.monotonic()
        state: State = (
            "ready" if reason is None else "unavailable" if seen.was_ready else "starting"
        )
        if state != seen.state:
            seen.since = now
        seen.state, seen.reason, seen.looked_at = state, reason, now
        seen.was_ready = seen.was_ready or state == "ready"


def summarise(checks: dict[str, Check]) -> Health:
    """Returns the one status of many checks."""
    required = {check.state for check in checks.values() if check.required}
    if "unavailable" in required:
        return Health(status="unavailable", checks=checks)
    if "starting" in required:
        return Health(status="starting", checks=checks)
    optional_away = any(check.state != "ready" for check in checks.values())
    return Health(status="degraded" if optional_away else "ready", checks=checks)
