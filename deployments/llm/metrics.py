"""LLM calls as Prometheus metrics, through Ray's exporter, on the event log's thread."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from ray.util.metrics import Counter, Histogram

from backends.telemetry.event_log import Event

Tags = tuple[str, ...]
Counts = collections.Counter[Tags]

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
    120_000,
]


class LLMMetrics:
    """`daarion_llm_*`: calls, tokens, cost and latency by provider and logical model; circuits;
    limits that are nearly used up.
    """

    def __init__(self) -> None:
        by_model = ("provider", "logical_model")
        self._circuits = Counter(
            "daarion_llm_circuit_turns",
            "Circuits that opened or closed",
            ("provider", "model", "state"),
        )
        self._warnings = Counter(
            "daarion_llm_limit_warnings", "Limits of which four fifths were used", ("limit",)
        )
        self._calls = Counter("daarion_llm_calls", "LLM calls by outcome", (*by_model, "outcome"))
        self._tokens = Counter(
            "daarion_llm_tokens", "Tokens by direction", (*by_model, "direction")
        )
        self._cost = Counter(
            "daarion_llm_cost_usd", "US dollars of the calls that have a price", by_model
        )
        self._latency = Histogram(
            "daarion_llm_latency_ms", "Whole call, milliseconds", _LATENCY_MS, by_model
        )
        self._first_token = Histogram(
            "daarion_llm_first_token_ms",
            "To the first token of a stream, milliseconds",
            _LATENCY_MS,
            by_model,
        )

    def __call__(self, events: Iterable[Event]) -> None:
        """Counts the calls among `events`. Sums come first: a call of the exporter costs more."""
        calls: Counts = collections.Counter()
        tokens: Counts = collections.Counter()
        costs: dict[Tags, float] = {}
        for event in events:
            if event["event"] == "llm.call":
                by_model = (event["provider"] or "none", event["logical_model"])
                calls[*by_model, event["outcome"]] += 1
                tokens[*by_model, "prompt"] += event["prompt_tokens"]
                tokens[*by_model, "completion"] += event["completion_tokens"]
                costs[by_model] = costs.get(by_model, 0.0) + (event.get("cost_usd") or 0.0)
                self._observe(event, {"provider": by_model[0], "logical_model": by_model[1]})
            elif event["event"] == "llm.circuit":
                self._circuits.inc(1, {key: event[key] for key in ("provider", "model", "state")})
            elif event["event"] == "limits.warning":
                self._warnings.inc(1, {"limit": event["limit"]})
        for counter, sums in ((self._calls, calls), (self._tokens, tokens), (self._cost, costs)):
            for values, amount in sums.items():
                if amount:
                    counter.inc(amount, dict(zip(counter.info["tag_keys"], values, strict=True)))

    def _observe(self, event: Event, tags: dict[str, str]) -> None:
        self._latency.observe(max(event["latency_ms"], 0.001), tags)
        if event["ttft_ms"] is not None:
            self._first_token.observe(max(event["ttft_ms"], 0.001), tags)
