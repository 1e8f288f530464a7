"""An OTLP collector: takes spans over HTTP and protobuf, as any collector does, and keeps them."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Proto
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from backends.telemetry.traces import Traces
from common import tracing
from configs.environment import read_environment
from tests.support.events import RecordedEvents


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it arrived. Ids are hexadecimal; `parent` is empty for a root."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent: str
    attributes: dict
    failed: bool
    message: str
    events: tuple[str, ...]
    resource: dict
    scope: str
    trace_state: str
    start: int
    end: int

    @property
    def error(self):
        return self.attributes.get("error.type")


class Collector:
    """`requests` are the headers and the body of each request; `status` is what it answers."""

    def __init__(self):
        self.requests = []
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests.append((self.path, dict(self.headers), body))
                self.send_response(collector.status)
                self.send_header("content-type", "application/x-protobuf")
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def spans(self) -> list[ReceivedSpan]:
        return [span for _, _, body in self.requests for span in spans_of(body)]

    def named(self, name) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name) -> ReceivedSpan:
        found = self.named(name)
        assert len(found) == 1, (name, sorted(span.name for span in self.spans))
        return found[0]

    def children(self, parent: ReceivedSpan) -> list[ReceivedSpan]:
        """Returns its children in the order of their starts."""
        found = [span for span in self.spans if span.parent == parent.span_id]
        return sorted(found, key=lambda span: span.start)

    def wait(self, name, timeout_s=10.0) -> ReceivedSpan:
        """Returns the only span of that name, once it is here."""
        ends = time.monotonic() + timeout_s
        while not self.named(name) and time.monotonic() < ends:
            time.sleep(0.02)
        return self.one(name)


def spans_of(body) -> list[ReceivedSpan]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        ReceivedSpan(
            name=span.name,
            kind=Proto.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            attributes=_values(span.attributes),
            failed=span.status.code == Status.STATUS_CODE_ERROR,
            message=span.status.message,
            events=tuple(event.name for event in span.events),
            resource=_values(resource.resource.attributes),
            scope=scope.scope.name,
            trace_state=span.trace_state,
            start=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _values(attributes):
    return {each.key: _value(each.value) for each in attributes}


def _value(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


@contextlib.contextmanager
def tracing_to(collector, monkeypatch, application="test", events=None, **variables):
    """Traces to `collector` as a process of the graph does; its end sends the last spans."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} | variables
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    lookup = read_environment(variables).secret
    traces = Traces(lookup, application, RecordedEvents() if events is None else events)
    traces.open()
    try:
        yield tracing
    finally:
        traces.close()
