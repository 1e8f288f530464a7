"""Calls as Prometheus metrics, through Ray's own exporter. Fed from the event log's thread, so a call pays nothing."""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Counter, Histogram

from backends.event_log import Event

_LATENCY_MS = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000]


class LLMMetrics:
    """`daarion_llm_*`: calls by outcome, tokens, latency and time to the first token by provider and logical model; circuits that turn."""

    def __init__(self) -> None:
        by_model = ("provider", "logical_model")
        self._circuits = Counter("daarion_llm_circuit_turns", "Circuits that opened or closed", ("provider", "model", "state"))
        self._calls = Counter("daarion_llm_calls", "LLM calls by outcome", (*by_model, "outcome"))
        self._tokens = Counter("daarion_llm_tokens", "Tokens by direction", (*by_model, "direction"))
        self._cost = Counter("daarion_llm_cost_usd", "US dollars of the calls that have a price", by_model)
        self._latency = Histogram("daarion_llm_latency_ms", "Whole call, milliseconds", _LATENCY_MS, by_model)
        self._first_token = Histogram("daarion_llm_first_token_ms", "To the first token of a stream, milliseconds", _LATENCY_MS, by_model)

    def __call__(self, events: Iterable[Event]) -> None:
        """Counts the calls among `events`."""
        for event in events:
            if event["event"] == "llm.call":
                self._count(event)
            elif event["event"] == "llm.circuit":
                self._circuits.inc(1, {key: event[key] for key in ("provider", "model", "state")})

    def _count(self, event: Event) -> None:
        tags = {"provider": event["provider"] or "none", "logical_model": event["logical_model"]}
        self._calls.inc(1, {**tags, "outcome": event["outcome"]})
        for direction in ("prompt", "completion"):
            if tokens := event[f"{direction}_tokens"]:
                self._tokens.inc(tokens, {**tags, "direction": direction})
        if cost := event.get("cost_usd"):
            self._cost.inc(cost, tags)
        self._latency.observe(max(event["latency_ms"], 0.001), tags)
        if event["ttft_ms"] is not None:
            self._first_token.observe(max(event["ttft_ms"], 0.001), tags)
