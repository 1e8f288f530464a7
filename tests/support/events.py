"""An event log that keeps its events."""

from dataclasses import dataclass, field
from typing import Any

from backends.telemetry.event_log import ONLY_COUNTED


@dataclass
class RecordedEvents:
    """Implements the EventLog port."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    counted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Those that are for metrics alone."""

    def emit(self, event: str, **fields: Any) -> None:
        (self.counted if event in ONLY_COUNTED else self.events).append((event, fields))

    def named(self, event: str) -> list[dict[str, Any]]:
        """Returns the fields of every event of that name."""
        return [fields for name, fields in self.events if name == event]
