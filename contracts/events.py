"""The port of the event log."""

from typing import Any, Protocol


class EventLog(Protocol):
    """Structured events: names and fields, never sentences, message contents or secrets."""

    def emit(self, event: str, **fields: Any) -> None:
        """Queues one event. Never blocks and never raises."""
