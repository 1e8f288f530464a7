"""Metrics through Ray's exporter: a node's agent serves those of all its processes on one port."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from backends.telemetry.metric_table import MILLISECONDS, Metric
from backends.telemetry.metrics import EventMetrics, Record


def event_metrics(application: str) -> EventMetrics:
    """Returns the listener of an event log that feeds the process's metrics."""
    return EventMetrics(application, _record_of)


def _record_of(metric: Metric) -> Record:
    named = metric.name, metric.help
    record: Record
    match metric.kind:
        case "counter":
            record = Counter(*named, metric.labels).inc
        case "gauge":
            record = Gauge(*named, metric.labels).set
        case "histogram":
            record = Histogram(*named, list(MILLISECONDS), metric.labels).observe
    return record
