"""Spans of a process: sent to a real collector, and never with contents."""

import asyncio
import json
import logging
import threading
import time

import pytest
from opentelemetry import trace

from backends.telemetry.event_log import FileEventLog
from backends.telemetry.traces import Traces
from common import tracing
from configs.environment import read_environment
from contracts.errors import Overloaded
from deployments.graph.resources import Resources, open_event_log
from tests.support.otlp import tracing_to

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = CALLER[:-1] + "0"


def test_spans_arrive_within_one_another_with_what_the_process_is(collector, monkeypatch):
    with tracing_to(collector, monkeypatch, "memory"):
        with tracing.span("outer", tracing.SpanKind.SERVER) as outer:
            outer.set_attribute("a", 1)
            with tracing.span("inner", attributes={"b": "c"}):
                pass
            assert tracing.get_current_span() is outer
        assert tracing.current_trace_id() is None
    outer, inner = collector.one("outer"), collector.one("inner")
    assert (outer.kind, outer.attributes, outer.parent) == ("SERVER", {"a": 1}, "")
    assert (inner.kind, inner.attributes) == ("INTERNAL", {"b": "c"})
    assert (inner.trace_id, inner.parent) == (outer.trace_id, outer.span_id)
    assert outer.resource["service.name"] == "daarion-memory"
    assert outer.resource["service.instance.id"].startswith("memory-")
    assert outer.scope == "daarion.memory"
    assert not outer.failed
    assert {path for path, _, _ in collector.requests} == {"/v1/traces"}


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (Overloaded("full of secrets"), "overloaded"),
        (ValueError("full of secrets"), "ValueError"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
)
def test_a_failed_span_names_the_error_and_shows_no_message(collector, monkeypatch, error, named):
    with (
        tracing_to(collector, monkeypatch),
        pytest.raises(type(error)),
        tracing.span("works"),
    ):
        raise error
    span = collector.one("works")
    assert (span.failed, span.error, span.message, span.events) == (True, named, "", ())
    assert all(b"secrets" not in body for _, _, body in collector.requests)


def test_the_callers_trace_goes_on_and_is_passed_on(collector, monkeypatch):
    with tracing_to(collector, monkeypatch):
        parent = tracing.remote_context({"traceparent": CALLER, "tracestate": "vendor=1"})
        with tracing.span("served", parent=parent):
            passed = {}
            tracing.inject(passed)
            assert tracing.current_trace_id() == CALLER[3:35]
    span = collector.one("served")
    assert (span.trace_id, span.parent) == (CALLER[3:35], CALLER[36:52])
    assert passed == {
        "traceparent": f"00-{span.trace_id}-{span.span_id}-01",
        "tracestate": "vendor=1",
    }
    assert span.trace_state == "vendor=1"


@pytest.mark.parametrize(
    "header", ["", "no", f"{CALLER}-more", CALLER.replace("4", "g"), "0" * 600]
)
def test_a_malformed_traceparent_begins_a_trace_of_its_own(collector, monkeypatch, header):
    with tracing_to(collector, monkeypatch):
        parent = tracing.remote_context({"traceparent": header})
        with tracing.span("served", parent=parent):
            pass
    assert collector.one("served").parent == ""


def test_what_a_caller_does_not_sample_costs_no_span_and_is_passed_on_as_it_is(
    collector, monkeypatch
):
    with tracing_to(collector, monkeypatch):
        parent = tracing.remote_context({"traceparent": UNSAMPLED})
        with tracing.span("served", parent=parent) as outer:
            assert not outer.is_recording()
            with tracing.span("within") as inner:
                assert inner is outer
            passed = {}
            tracing.inject(passed)
            assert tracing.current_trace_id() == UNSAMPLED[3:35]
    assert passed["traceparent"][:36] == UNSAMPLED[:36]
    assert passed["traceparent"].endswith("-00")
    assert collector.requests == []


def test_a_sampler_decides_for_whole_traces(collector, monkeypatch):
    sampled = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.2"}
    with tracing_to(collector, monkeypatch, **sampled):
        for _ in range(1_000):
            with tracing.span("outer"), tracing.span("inner"):
                pass
    outer, inner = collector.named("outer"), collector.named("inner")
    assert 100 < len(outer) < 300
    assert {span.trace_id for span in outer} == {span.trace_id for span in inner}
    assert len(inner) == len(outer)


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_set_up_unless_a_collector_is_named(collector, monkeypatch, events, variables):
    threads = threading.active_count()
    with tracing_to(collector, monkeypatch, events=events, **variables):
        assert not tracing.is_on()
        assert threading.active_count() == threads
        with tracing.span("served") as span:
            assert not span.is_recording()
            assert tracing.current_trace_id() is None
            passed = {}
            tracing.inject(passed)
            assert passed == {}
    assert collector.requests == []
    assert events.events == []


def test_no_library_gets_a_tracer(collector, monkeypatch):
    before = trace.get_tracer_provider()
    with tracing_to(collector, monkeypatch):
        assert trace.get_tracer_provider() is before
        with tracing.span("ours"), trace.get_tracer("a.library").start_as_current_span("theirs"):
            pass
    assert [span.name for span in collector.spans] == ["ours"]


def test_the_operators_names_endpoint_and_headers_count(collector, monkeypatch):
    given = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/some/path",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20key",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_SERVICE_NAME": "city",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.instance.id=one",
    }
    with tracing_to(collector, monkeypatch, **given), tracing.span("served"):
        pass
    resource = collector.one("served").resource
    assert resource["service.name"] == "city"
    assert resource["deployment.environment.name"] == "test"
    assert resource["service.instance.id"] == "one"
    path, headers, _ = collector.requests[0]
    assert path == "/some/path"
    assert headers["authorization"] == "Bearer key"


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
    ],
)
def test_values_that_cannot_be_used_are_logged_and_stop_nothing(
    collector, monkeypatch, events, variables
):
    with tracing_to(collector, monkeypatch, events=events, **variables), tracing.span("served"):
        pass
    assert [name for name, _ in events.events] == ["traces.not_started"]
    assert collector.requests == []


def test_callers_malformed_headers_are_no_events(collector, monkeypatch, events, caplog):
    valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    malformed = {"traceparent": valid, "tracestate": "a secret that is no state"}
    with tracing_to(collector, monkeypatch, events=events), caplog.at_level(logging.DEBUG):
        tracing.remote_context(malformed)
        tracing.remote_context({"traceparent": valid + "-" + "x" * 2_000})
    assert events.events == []
    assert "secret" not in caplog.text


def test_complaints_of_the_sdk_are_events_without_the_values(
    collector, monkeypatch, events, caplog
):
    wrong = {
        "OTEL_TRACES_SAMPLER": "sometimes",
        "OTEL_EXPORTER_OTLP_HEADERS": "a secret without a name",
        "OTEL_RESOURCE_ATTRIBUTES": "a secret without a name",
    }
    with (
        tracing_to(collector, monkeypatch, events=events, **wrong),
        tracing.span("served"),
        caplog.at_level(logging.DEBUG),
    ):
        pass
    assert {fields["logger"] for fields in events.named("traces.problem")} == {
        "opentelemetry.sdk.trace.sampling",
        "opentelemetry.sdk.resources",
        "opentelemetry.util.re",
    }
    assert "secret" not in repr(events.events) + caplog.text
    assert collector.one("served")
    assert logging.getLogger("opentelemetry").propagate


def test_a_refusing_collector_costs_spans_and_says_so(collector, monkeypatch, events):
    collector.status = 400
    with tracing_to(collector, monkeypatch, events=events), tracing.span("served"):
        pass
    problems = [fields["problem"] for fields in events.named("traces.problem")]
    assert any("Failed to export" in problem for problem in problems)


def test_a_collector_that_is_away_holds_nobody(monkeypatch, events):
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_MAX_QUEUE_SIZE": "8"}
    away["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = "8"
    for name, value in away.items():
        monkeypatch.setenv(name, value)
    traces = Traces(away.get, "test", events)
    traces.open()
    started = time.monotonic()
    for _ in range(1_000):
        with tracing.span("served"):
            pass
    assert time.monotonic() - started < 1
    traces.close()
    assert time.monotonic() - started < 8
    assert events.named("traces.problem")


async def test_a_process_of_the_graph_traces_as_its_environment_says_until_it_ends(
    collector, monkeypatch, tmp_path
):
    monkeypatch.setenv("DAARION_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    async with Resources() as resources:
        open_event_log(read_environment(), "memory", resources=resources)
        assert tracing.is_on()
        with tracing.span("served"):
            pass
    assert not tracing.is_on()
    assert collector.one("served").resource["service.name"] == "daarion-memory"


def test_an_event_within_a_span_has_its_trace_id(collector, monkeypatch, tmp_path):
    log = FileEventLog(tmp_path / "events.jsonl", "test")
    with tracing_to(collector, monkeypatch):
        log.emit("before")
        with tracing.span("served"):
            log.emit("within")
            log.emit("of_another", trace_id="given")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    found = {line["event"]: line.get("trace_id") for line in lines}
    trace_id = collector.one("served").trace_id
    assert found == {"before": None, "within": trace_id, "of_another": "given"}
