"""The port of the event log."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from contracts.errors import DaarionError

Sample = tuple[str, Mapping[str, str], float]
"""A gauge's name, labels and present value. The process's application is added to the labels."""
SAMPLE_EVERY_S = 5.0


class EventLog(Protocol):
    """Structured events: names and fields, never sentences, message contents or secrets."""

    def emit(self, event: str, **fields: Any) -> None:
        """Queues one event. Never blocks and never raises."""


class Published(Protocol):
    """An event for the outside, with the subject that it is published on."""

    subject: ClassVar[str]

    def message(self) -> dict[str, Any]:
        """Returns the message, as JSON values."""


class Publisher(Protocol):
    """Where events for the outside are announced."""

    def publish(self, event: Published) -> None:
        """Queues one event. Never blocks and never raises; what is stored is authoritative."""


def failure_event(
    events: EventLog,
    event: str | None,
    *,
    defect: str | None = None,
    with_pause: bool = False,
    **fields: Any,
) -> Callable[[Exception, float], None]:
    """Returns what emits a failed run of periodic work: as `event` with the error's type; other
    exceptions than DaarionError, with traceback, as `defect` if it is given. Without `event` only
    those are emitted. `with_pause`: `event` has the `seconds` until the next run.
    """

    def emit(error: Exception, seconds: float) -> None:
        if not isinstance(error, DaarionError):
            name = defect or event
            assert name is not None
            events.emit(name, **fields, error=type(error).__name__, exc_info=error)
        elif event is not None:
            pause = {"seconds": seconds} if with_pause else {}
            events.emit(event, **fields, error=error.type, **pause)

    return emit
