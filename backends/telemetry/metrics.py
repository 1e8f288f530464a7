"""Feeds metrics from events, on the event log's thread."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from backends.telemetry.metric_table import DEFECT, METRICS, SOURCES, Event, Metric, Source

MAX_VALUES = 200
"""Different values of one label of a metric; further ones are counted as `other`."""
MAX_CHARS = 64

Record = Callable[[float, dict[str, str]], None]
"""Adds an amount to a counter, sets a gauge, or observes a value in a histogram, by its labels."""


class EventMetrics:
    """A listener of the event log that feeds the metrics of one process."""

    def __init__(self, application: str, record_of: Callable[[Metric], Record]) -> None:
        """`record_of` registers a metric, when it is first fed."""
        self._application = application
        self._record_of = record_of
        self._records: dict[str, Record] = {}
        self._sources: defaultdict[str, list[Source]] = defaultdict(list)
        for source in SOURCES:
            self._sources[source.event].append(source)
        self._values: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def __call__(self, events: Iterable[Event]) -> None:
        """Feeds the metrics. Counters are summed first: a call of the exporter costs more."""
        sums: Counter[tuple[str, tuple[str, ...]]] = Counter()
        for event in events:
            for name, labels, value in event.get("samples", ()):
                self._record(METRICS[name], self._labels(METRICS[name], labels), value)
            for source in self._of(event):
                amount = 1 if source.of is None else event.get(source.of)
                if amount is None:
                    continue
                metric = METRICS[source.metric]
                labels = {
                    label: value(event) if callable(value) else event.get(value)
                    for label, value in source.labels.items()
                }
                if metric.kind == "counter":
                    sums[metric.name, self._labels(metric, labels)] += amount
                else:
                    self._record(metric, self._labels(metric, labels), amount)
        for (name, values), amount in sums.items():
            if amount:
                self._record(METRICS[name], values, amount)

    def _of(self, event: Event) -> list[Source]:
        defects = self._sources[DEFECT] if event.get("exc_info") is not None else []
        return self._sources.get(event["event"], []) + defects

    def _labels(self, metric: Metric, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the values of the metric's labels; `application` is this process's own."""
        known = {"application": self._application, **given}
        return tuple(self._bounded(metric.name, label, known[label]) for label in metric.labels)

    def _bounded(self, metric: str, label: str, given: Any) -> str:
        value = "none" if given is None else str(given)[:MAX_CHARS]
        seen = self._values[metric, label]
        if value not in seen and len(seen) >= MAX_VALUES:
            return "other"
        seen.add(value)
        return value

    def _record(self, metric: Metric, values: tuple[str, ...], value: float) -> None:
        if metric.name not in self._records:
            self._records[metric.name] = self._record_of(metric)
        self._records[metric.name](value, dict(zip(metric.labels, values, strict=True)))
