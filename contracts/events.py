"""The port of the event log."""

from collections.abc import Callable
from typing import Any, Protocol

from contracts.errors import DaarionError


class EventLog(Protocol):
    """Structured events: names and fields, never sentences, message contents or secrets."""

    def emit(self, event: str, **fields: Any) -> None:
        """Queues one event. Never blocks and never raises."""


def failure_event(
    events: EventLog, event: str | None, *, defect: str | None = None, **fields: Any
) -> Callable[[Exception, float], None]:
    """Returns what emits a failed run of periodic work: as `event` with the error's type; other
    exceptions than DaarionError, with traceback, as `defect` if it is given. Without `event` only
    those are emitted.
    """

    def emit(error: Exception, _seconds: float) -> None:
        if not isinstance(error, DaarionError):
            name = defect or event
            assert name is not None
            events.emit(name, **fields, error=type(error).__name__, exc_info=error)
        elif event is not None:
            events.emit(event, **fields, error=error.type)

    return emit
