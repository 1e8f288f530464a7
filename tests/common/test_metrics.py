"""Metrics that are fed from events."""

import collections
import time

import pytest

from backends.telemetry.event_log import FileEventLog
from backends.telemetry.metric_table import METRICS, SOURCES
from backends.telemetry.metrics import MAX_VALUES, EventMetrics

CALL = {
    "event": "llm.call", "provider": "openai", "logical_model": "strategic_reasoning",
    "outcome": "ok", "attempts": 2, "prompt_tokens": 7, "completion_tokens": 5, "cost_usd": 0.25,
    "latency_ms": 40.0, "ttft_ms": None,
}  # fmt: skip


@pytest.fixture
def recorded():
    """Returns what was recorded, by metric: pairs of value and labels."""
    return collections.defaultdict(list)


@pytest.fixture
def count(recorded):
    def record_of(metric):
        return lambda value, labels: recorded[metric.name].append((value, labels))

    return EventMetrics("llm", record_of)


def test_calls_are_summed_by_batch(count, recorded):
    count([CALL, CALL, {**CALL, "outcome": "error", "cost_usd": None, "provider": None}])
    by_model = {"provider": "openai", "logical_model": "strategic_reasoning"}
    nobody = {**by_model, "provider": "none"}
    assert recorded["daarion_llm_calls"] == [
        (2, {**by_model, "outcome": "ok"}),
        (1, {**nobody, "outcome": "error"}),
    ]
    assert recorded["daarion_llm_tokens"] == [
        (14, {**by_model, "direction": "prompt"}),
        (10, {**by_model, "direction": "completion"}),
        (7, {**nobody, "direction": "prompt"}),
        (5, {**nobody, "direction": "completion"}),
    ]
    assert recorded["daarion_llm_cost_usd"] == [(0.5, by_model)]
    assert recorded["daarion_llm_latency_ms"] == [(40.0, by_model)] * 2 + [(40.0, nobody)]
    assert "daarion_llm_first_token_ms" not in recorded


def test_requests_and_their_errors(count, recorded):
    request = {"event": "http.request", "method": "POST", "route": "/query", "status": 200,
               "error": None, "failed": None, "duration_ms": 3.5}  # fmt: skip
    count([request, {**request, "status": 429, "error": "rate_limited", "failed": 1}])
    labels = {"application": "llm", "method": "POST", "route": "/query"}
    assert recorded["daarion_http_requests"] == [
        (1, {**labels, "status": "200"}),
        (1, {**labels, "status": "429"}),
    ]
    assert recorded["daarion_http_errors"] == [(1, {"application": "llm", "type": "rate_limited"})]
    assert len(recorded["daarion_http_duration_ms"]) == 2


def test_tool_calls_that_fail_are_counted_by_their_error(count, recorded):
    call = {"event": "tools.call", "tool_id": "text.summary_stats", "via": "http", "ok": True,
            "error_kind": None, "duration_ms": 8}  # fmt: skip
    count([call, {**call, "ok": False, "error_kind": "timeout"}])
    outcomes = [labels["outcome"] for _, labels in recorded["daarion_tool_calls"]]
    assert outcomes == ["ok", "timeout"]


def test_defects_are_counted_by_their_event(count, recorded):
    count([{"event": "tools.defect", "exc_info": ValueError("x")}, {"event": "database.back"}])
    assert recorded["daarion_defects"] == [(1, {"application": "llm", "event": "tools.defect"})]


def test_samples_are_gauges_of_the_process(count, recorded):
    count([{"event": "metrics.sampled", "samples": [("daarion_waiting", {"queue": "x"}, 3)]}])
    pool = {"pool": "main"}
    count([{"event": "metrics.sampled", "samples": [("daarion_database_waiting", pool, 0)]}])
    assert recorded["daarion_waiting"] == [(3, {"queue": "x"})]
    assert recorded["daarion_database_waiting"] == [(0, {"application": "llm", **pool})]


def test_a_label_has_a_bound_of_values(count, recorded):
    count([{"event": "tools.refused", "error_kind": f"k{n}"} for n in range(MAX_VALUES + 50)])
    kinds = [labels["error_kind"] for _, labels in recorded["daarion_tool_refusals"]]
    assert len(kinds) == MAX_VALUES + 1
    assert recorded["daarion_tool_refusals"][-1] == (50, {"error_kind": "other"})
    count([{"event": "tools.refused", "error_kind": "k0"}])
    assert recorded["daarion_tool_refusals"][-1] == (1, {"error_kind": "k0"})


def test_every_source_feeds_a_metric_with_all_its_labels():
    for source in SOURCES:
        labels = set(METRICS[source.metric].labels)
        assert set(source.labels) | {"application"} >= labels, source
        assert set(source.labels) <= labels, source
    fed = {source.metric for source in SOURCES}
    gauges = {metric.name for metric in METRICS.values() if metric.kind == "gauge"}
    assert fed | gauges == set(METRICS)
    assert not fed & gauges


def test_what_is_only_counted_is_not_written(tmp_path, count, recorded):
    path = tmp_path / "events.jsonl"
    log = FileEventLog(path, "llm", [count])
    log.emit("http.request", method="GET", route="/x", status=200, error=None, failed=None,
             duration_ms=1.0)  # fmt: skip
    time.sleep(0.2)  # a batch of its own
    log.emit("database.back")
    log.close()
    until = time.monotonic() + 5
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert [line.count('"event":"database.back"') for line in path.read_text().splitlines()] == [1]
    assert recorded["daarion_http_requests"]
