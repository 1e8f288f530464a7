"""Tool calls as Prometheus metrics, through Ray's exporter, on the event log's thread."""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Counter, Histogram

from backends.telemetry.event_log import Event

_LATENCY_MS = [
    1,
    2,
    5,
    10,
    25,
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    30_000,
    60_000,
    600_000,
]


class ToolMetrics:
    """`daarion_tool_*`: calls by outcome and duration, refusals by kind."""

    def __init__(self) -> None:
        self._calls = Counter(
            "daarion_tool_calls", "Ended tool calls by outcome", ("tool_id", "via", "outcome")
        )
        self._refused = Counter(
            "daarion_tool_refusals", "Tool calls that policy refused", ("error_kind",)
        )
        self._duration = Histogram(
            "daarion_tool_duration_ms", "Executions, milliseconds", _LATENCY_MS, ("tool_id",)
        )

    def __call__(self, events: Iterable[Event]) -> None:
        """Counts the calls among `events`."""
        for event in events:
            if event["event"] == "tools.call":
                self._count(event)
            elif event["event"] == "tools.refused":
                self._refused.inc(1, {"error_kind": event["error_kind"] or "none"})

    def _count(self, event: Event) -> None:
        outcome = "ok" if event["ok"] else event["error_kind"] or "none"
        self._calls.inc(
            1, {"tool_id": event["tool_id"], "via": event["via"] or "none", "outcome": outcome}
        )
        self._duration.observe(max(event["duration_ms"], 0.001), {"tool_id": event["tool_id"]})
