"""Every metric of the product, and the events that feed it.

A metric is fed by events alone, so whoever emits an event need not know of metrics. Gauges have no
source here: their samples arrive as the event `metrics.sampled`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Event = Mapping[str, Any]
Kind = Literal["counter", "histogram", "gauge"]

MILLISECONDS = (
    1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000,
    600_000,
)  # fmt: skip
"""Upper bounds of the histograms' buckets."""


@dataclass(frozen=True)
class Metric:
    """A metric and its labels. Histograms hold milliseconds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "daarion_http_requests",
            "counter",
            "Requests by application, route (its template) and status",
            ("application", "method", "route", "status"),
        ),
        Metric(
            "daarion_http_errors",
            "counter",
            "Requests that were answered with an error, by its `type`",
            ("application", "type"),
        ),
        Metric(
            "daarion_http_duration_ms",
            "histogram",
            "From a request's head to the end of its answer, streams included",
            ("application", "route"),
        ),
        Metric(
            "daarion_llm_calls",
            "counter",
            "LLM calls by outcome; `cached` ones reached no model",
            ("provider", "logical_model", "outcome"),
        ),
        Metric(
            "daarion_llm_attempts",
            "counter",
            "Attempts of LLM calls and skipped targets, by the provider of the last one",
            ("provider", "logical_model"),
        ),
        Metric(
            "daarion_llm_tokens",
            "counter",
            "Tokens (`prompt`, `completion`) of all attempts, under the last one's provider",
            ("provider", "logical_model", "direction"),
        ),
        Metric(
            "daarion_llm_cost_usd",
            "counter",
            "US dollars of the calls that have a price",
            ("provider", "logical_model"),
        ),
        Metric(
            "daarion_llm_latency_ms",
            "histogram",
            "The whole call",
            ("provider", "logical_model"),
        ),
        Metric(
            "daarion_llm_first_token_ms",
            "histogram",
            "To the first token of a stream",
            ("provider", "logical_model"),
        ),
        Metric(
            "daarion_llm_circuit_turns",
            "counter",
            "Circuits that opened or closed",
            ("provider", "model", "state"),
        ),
        Metric(
            "daarion_llm_limit_warnings",
            "counter",
            "Limits of which 80 % were used (`agent.usd_per_day`, …)",
            ("limit",),
        ),
        Metric(
            "daarion_llm_embedded_tokens",
            "counter",
            "Tokens of `/v1/embeddings`, by outcome of the call",
            ("outcome",),
        ),
        Metric(
            "daarion_usage_lost",
            "counter",
            "Usage records that are not in the ledger: refused by PostgreSQL, or without room",
            ("reason",),
        ),
        Metric(
            "daarion_memory_arms_down",
            "counter",
            "Queries that were answered without this arm",
            ("arm",),
        ),
        Metric(
            "daarion_memory_documents", "counter", "Documents that were indexed, by kind", ("kind",)
        ),
        Metric(
            "daarion_tool_calls",
            "counter",
            "Ended tool calls by outcome",
            ("tool_id", "via", "outcome"),
        ),
        Metric(
            "daarion_tool_refusals", "counter", "Tool calls that policy refused", ("error_kind",)
        ),
        Metric("daarion_tool_duration_ms", "histogram", "Executions", ("tool_id",)),
        Metric("daarion_agent_runs", "counter", "Ended runs by outcome", ("outcome",)),
        Metric(
            "daarion_agent_run_duration_ms",
            "histogram",
            "From a run's start to its end",
            ("outcome",),
        ),
        Metric("daarion_agent_steps", "counter", "Model calls of ended runs"),
        Metric(
            "daarion_parked_messages",
            "counter",
            "Messages on NATS that can never be served",
            ("application",),
        ),
        Metric("daarion_audit_dropped", "counter", "Refusals that are not in the audit trail"),
        Metric(
            "daarion_events_dropped",
            "counter",
            "Events that the log had no room for",
            ("application",),
        ),
        Metric(
            "daarion_defects",
            "counter",
            "Events of bugs: every one is worth a report",
            ("application", "event"),
        ),
        Metric(
            "daarion_dependency_up",
            "gauge",
            "1 while the dependency answers its probe; use min()",
            ("application", "dependency"),
        ),
        Metric(
            "daarion_database_connections",
            "gauge",
            "Connections of a replica's pool, by state: `used`, `idle`",
            ("application", "pool", "state"),
        ),
        Metric(
            "daarion_database_waiting",
            "gauge",
            "Callers that wait for a connection",
            ("application", "pool"),
        ),
        Metric(
            "daarion_usage_spool_records",
            "gauge",
            "Usage records of a replica that wait for PostgreSQL",
        ),
        Metric(
            "daarion_usage_spool_bytes",
            "gauge",
            "Size of a replica's files of usage; calls are refused at 512 MiB",
        ),
        Metric(
            "daarion_waiting",
            "gauge",
            "Work that waits in PostgreSQL, by queue; every replica of Root reports all: use max()",
            ("queue",),
        ),
        Metric(
            "daarion_waiting_age_s",
            "gauge",
            "Age of the oldest waiting piece of a queue, seconds; use max()",
            ("queue",),
        ),
    )
}

BY_MODEL = {"provider": "provider", "logical_model": "logical_model"}
DEFECT = "defect"


@dataclass(frozen=True)
class Source:
    """Feeds a metric from an event: `labels` are taken from these fields, or by these functions.

    The amount is the field `of`, None of which is left out; without `of` it is 1.
    """

    event: str
    metric: str
    labels: Mapping[str, str | Callable[[Event], Any]]
    of: str | None = None


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _outcome(call: Event) -> Any:
    return "cached" if call.get("cached") else call["outcome"]


def _constant(value: str) -> Callable[[Event], str]:
    return lambda _event: value


SOURCES = (
    Source("http.request", "daarion_http_requests", _same("method", "route", "status")),
    Source("http.request", "daarion_http_errors", {"type": "error"}, of="failed"),
    Source("http.request", "daarion_http_duration_ms", _same("route"), of="duration_ms"),
    Source("llm.call", "daarion_llm_calls", {**BY_MODEL, "outcome": _outcome}),
    Source("llm.call", "daarion_llm_attempts", BY_MODEL, of="attempts"),
    Source(
        "llm.call",
        "daarion_llm_tokens",
        {**BY_MODEL, "direction": _constant("prompt")},
        of="prompt_tokens",
    ),
    Source(
        "llm.call",
        "daarion_llm_tokens",
        {**BY_MODEL, "direction": _constant("completion")},
        of="completion_tokens",
    ),
    Source("llm.call", "daarion_llm_cost_usd", BY_MODEL, of="cost_usd"),
    Source("llm.call", "daarion_llm_latency_ms", BY_MODEL, of="latency_ms"),
    Source("llm.call", "daarion_llm_first_token_ms", BY_MODEL, of="ttft_ms"),
    Source("llm.circuit", "daarion_llm_circuit_turns", _same("provider", "model", "state")),
    Source("limits.warning", "daarion_llm_limit_warnings", _same("limit")),
    Source("llm.embeddings", "daarion_llm_embedded_tokens", _same("outcome"), of="tokens"),
    Source("usage.rejected", "daarion_usage_lost", {"reason": _constant("rejected")}),
    Source("usage.dropped", "daarion_usage_lost", {"reason": _constant("dropped")}, of="records"),
    Source("memory.arm_down", "daarion_memory_arms_down", _same("arm")),
    Source("memory.document_indexed", "daarion_memory_documents", _same("kind")),
    Source(
        "tools.call",
        "daarion_tool_calls",
        {
            "tool_id": "tool_id",
            "via": "via",
            "outcome": lambda event: "ok" if event["ok"] else event["error_kind"],
        },
    ),
    Source("tools.call", "daarion_tool_duration_ms", _same("tool_id"), of="duration_ms"),
    Source("tools.refused", "daarion_tool_refusals", _same("error_kind")),
    Source("agents.run", "daarion_agent_runs", _same("outcome")),
    Source("agents.run", "daarion_agent_run_duration_ms", _same("outcome"), of="duration_ms"),
    Source("agents.run", "daarion_agent_steps", {}, of="steps"),
    Source("tools.nats_parked", "daarion_parked_messages", {}),
    Source("agents.nats_parked", "daarion_parked_messages", {}),
    Source("audit.dropped", "daarion_audit_dropped", {}, of="count"),
    Source("log.dropped", "daarion_events_dropped", {}, of="count"),
    Source(DEFECT, "daarion_defects", _same("event")),
)
