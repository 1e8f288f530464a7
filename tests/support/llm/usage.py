"""Usage records for tests."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from contracts.llm.usage import UsageRecord

MOMENT = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)


def usage_record(**changes: Any) -> UsageRecord:
    """Returns a record of a plain successful call, with `changes`."""
    values: dict[str, Any] = {
        "request_id": "req-1",
        "occurred_at": MOMENT,
        "agent_id": "agent:sofia",
        "microdao_id": "microdao:7",
        "channel_id": None,
        "logical_model": "gpt-4.1-mini",
        "provider": "openai",
        "physical_model": "gpt-4.1-mini-2025-04-14",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "cached_tokens": 10,
        "reasoning_tokens": 5,
        "outcome": "ok",
        "latency_ms": 12.5,
        "ttft_ms": None,
        "cost_usd": Decimal("0.000125"),
    }
    return UsageRecord(**(values | changes))
