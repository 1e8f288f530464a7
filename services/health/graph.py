"""Health of the whole graph: its dependencies, its applications and the checks they report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from contracts.events import EventLog
from contracts.health import HEALTHY, Check, Health
from services.health.dependencies import Dependency, HealthMonitor, summarise


class Application(Protocol):
    """An application whose health can be probed; `last` is its latest report."""

    last: Health | None

    async def probe(self) -> None:
        """Raises when the application is not ready."""


class GraphHealth(HealthMonitor):
    """Aggregates health. Applications' checks appear as `<application>.<check>` and count once."""

    def __init__(
        self,
        applications: Mapping[str, Application],
        probes: Mapping[str, Dependency],
        events: EventLog,
    ) -> None:
        self._applications = applications
        own = {name: Dependency(each.probe) for name, each in applications.items()}
        super().__init__({**probes, **own}, events)

    def health(self) -> Health:
        """Returns the latest results."""
        own = super().health().checks
        reported = {
            f"{name}.{check}": seen
            for name in self._applications
            for check, seen in self._reported(name, own[name].age_s).items()
        }
        status = summarise(own).status
        if status == "ready" and any(check.state not in HEALTHY for check in reported.values()):
            status = "degraded"  # an application works without an optional dependency
        return Health(status=status, checks={**own, **reported})

    def _reported(self, name: str, age_s: float) -> dict[str, Check]:
        last = self._applications[name].last
        if last is None:
            return {}
        return {
            key: check.model_copy(update={"age_s": round(check.age_s + age_s, 1)})
            for key, check in last.checks.items()
        }
