"""Sends this process's spans to an OTLP collector, where OpenTelemetry's own variables name one."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from common import tracing
from contracts.events import EventLog

CLOSE_S = 5.0
"""How long the last spans may take; a collector that does not answer must not hold a replica."""

OTLP, HTTP = "OTEL_EXPORTER_OTLP", "http/protobuf"
OF_CALLERS = "opentelemetry.trace."
"""Loggers of the API that complain of callers' malformed headers, any number of times."""
CONTENTS = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


class Traces:
    """The process's tracer, from `open` until `close`.

    The SDK reads the variables itself: endpoint, headers, sampler, resource, bounds of its queue.
    What it cannot read, it replaces by a default; each of its complaints is the event
    `traces.problem`, without the values, which may be secret.
    """

    def __init__(
        self, lookup: Callable[[str], str | None], application: str, events: EventLog
    ) -> None:
        self._lookup = lookup
        self._application = application
        self._events = events
        self._provider: TracerProvider | None = None
        self._complaints = _Complaints(events)

    def open(self) -> None:
        """Begins to trace if the variables ask for it; a value that cannot be used is logged."""
        read, exporter = self._lookup, self._lookup("OTEL_TRACES_EXPORTER") or "otlp"
        endpoint = read(f"{OTLP}_TRACES_ENDPOINT") or read(f"{OTLP}_ENDPOINT")
        disabled = (read("OTEL_SDK_DISABLED") or "").lower() == "true"
        if endpoint is None or disabled or exporter == "none":
            return
        protocol = read(f"{OTLP}_TRACES_PROTOCOL") or read(f"{OTLP}_PROTOCOL") or HTTP
        if (exporter, protocol) != ("otlp", HTTP):
            self._events.emit("traces.not_started", error="unsupported_exporter")
            return
        self._complaints.listen()
        own = Resource.create(
            {
                SERVICE_NAME: f"daarion-{self._application}",
                SERVICE_INSTANCE_ID: f"{self._application}-{os.getpid()}",
            }
        )
        try:
            self._provider = TracerProvider(
                resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
            )
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        except Exception as error:  # noqa: BLE001  # whatever the SDK raises, the graph starts
            self._events.emit("traces.not_started", error=type(error).__name__)
            return
        tracer = self._provider.get_tracer(f"daarion.{self._application}")
        tracing.use(tracer, contents=(read(CONTENTS) or "").lower() == "true")

    def close(self) -> None:
        """Sends the last spans, within `CLOSE_S`, and ends tracing."""
        if self._provider is not None:
            tracing.use(None)
            # The SDK waits for a collector up to 30 s, and has no way to wait less.
            ending = threading.Thread(target=self._provider.shutdown, daemon=True)
            ending.start()
            ending.join(CLOSE_S)
        self._complaints.stop()


class _Complaints(logging.Handler):
    """Turns what the SDK logs into events, and keeps it from other logs."""

    def __init__(self, events: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._events = events
        self._logger = logging.getLogger("opentelemetry")

    def listen(self) -> None:
        self._logger.addHandler(self)
        self._logger.propagate = False

    def stop(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(OF_CALLERS):
            return
        # Unformatted: the arguments may be a header's value or a collector's answer.
        self._events.emit("traces.problem", logger=record.name, problem=str(record.msg))
