"""Every message of `usage.*` validates at DAARION's usage engine and has our own fields."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, get_args
from uuid import uuid4

import orjson
import pytest

from contracts.agents.announcements import AgentUsageEvent
from contracts.agents.invocations import Entrypoint
from contracts.agents.runs import Outcome
from contracts.llm.usage import AttemptRecord, UsageRecord, usage_message
from contracts.tools.api import ErrorKind
from contracts.tools.ledger import ToolUsageEvent
from tests.support.llm.usage import usage_record
from tests.support.llm.usage_engine import AgentUsage, LlmUsage, ToolUsage

NOW = datetime(2026, 3, 14, 15, 9, 26, 535897, UTC)
TRIES = (
    AttemptRecord("openai", "a", "upstream_unavailable", 2.5),
    AttemptRecord("backup", "b", "ok", 3.25, total_tokens=7),
)


def in_journal(record: UsageRecord) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads(orjson.dumps(record, default=str))
    return read


def in_ledger(record: UsageRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__} | {
        "tries": [in_journal(record)]
    }


@pytest.mark.parametrize("source", [in_journal, in_ledger])
@pytest.mark.parametrize(
    ("fields", "success", "error"),
    [
        ({"tries": TRIES, "cost_usd": Decimal("0.1"), "ttft_ms": 1.25}, True, None),
        (
            {"outcome": "cancelled", "channel_id": None, "latency_ms": 0.0, "estimated": True},
            False,
            "cancelled",
        ),
        (
            {"outcome": "upstream_unavailable", "cost_usd": None, "latency_ms": 812.6},
            False,
            "upstream_unavailable",
        ),
    ],
)
def test_a_call_of_a_model(source: Any, fields: dict[str, Any], success: Any, error: Any) -> None:
    record = usage_record(**fields)
    body = orjson.dumps(usage_message(source(record)), default=str)
    event = LlmUsage.model_validate_json(body)
    assert (event.event_id, event.timestamp) == (str(record.id), record.occurred_at)
    assert (event.actor_id, event.actor_type, event.agent_id, event.microdao_id) == (
        "agent:sofia",
        "agent",
        "agent:sofia",
        "microdao:7",
    )
    assert (event.model, event.provider, event.total_tokens) == (
        record.physical_model,
        record.provider,
        record.total_tokens,
    )
    assert (event.success, event.error, event.latency_ms) == (
        success,
        error,
        round(record.latency_ms),
    )
    ours = orjson.loads(body)
    assert (ours["id"], ours["outcome"], ours["logical_model"], len(ours["attempts"])) == (
        str(record.id),
        record.outcome,
        record.logical_model,
        2 if source is in_journal and record.tries else 1,
    )


@pytest.mark.parametrize("kind", [None, *get_args(ErrorKind)])
def test_a_call_of_a_tool(kind: ErrorKind | None) -> None:
    event = ToolUsageEvent(
        id=uuid4(),
        occurred_at=NOW,
        request_id=None,
        agent_id="user:olena",
        microdao_id="microdao:7",
        channel_id=None,
        tool_id="projects.list",
        tool_name="List projects",
        tool_version=None,
        call_id="c",
        effect=None,
        via=None,
        ok=kind is None,
        error_kind=kind,
        attempts=0,
        duration_ms=83.6,
        result_bytes=None,
    )
    sent = orjson.dumps(event.message())
    read = ToolUsage.model_validate_json(sent)
    assert (read.event_id, read.timestamp, read.actor_id, read.actor_type) == (
        str(event.id),
        NOW,
        "user:olena",
        "human",
    )
    assert (read.tool_id, read.tool_name, read.success, read.error, read.latency_ms) == (
        "projects.list",
        "List projects",
        kind is None,
        kind,
        84,
    )
    assert {"id", "call_id", "ok", "error_kind", "duration_ms", "effect"} <= orjson.loads(
        sent
    ).keys()


@pytest.mark.parametrize(
    ("entrypoint", "trigger"),
    [("channel_message", "message"), ("direct", "manual"), ("cron", "scheduled")],
)
@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_a_run_of_an_agent(entrypoint: Entrypoint, trigger: str, outcome: Outcome) -> None:
    event = AgentUsageEvent(
        id=uuid4(),
        occurred_at=NOW,
        agent_id="agent:sofia",
        microdao_id="microdao:7",
        channel_id=None,
        entrypoint=entrypoint,
        outcome=outcome,
        error=None,
        model=None,
        steps=2,
        tool_calls=1,
        prompt_tokens=1,
        completion_tokens=2,
        duration_ms=1_234,
    )
    sent = orjson.dumps(event.message())
    read = AgentUsage.model_validate_json(sent)
    assert (
        read.event_id,
        read.timestamp,
        read.trigger,
        read.llm_calls,
        read.tool_calls,
        read.duration_ms,
    ) == (
        str(event.id),
        NOW,
        trigger,
        2,
        1,
        1_234,
    )
    done = outcome in {"answered", "ignored"}
    assert (read.success, read.error) == (done, None if done else outcome)
    assert {"id", "outcome", "steps", "prompt_tokens", "entrypoint"} <= orjson.loads(sent).keys()


def test_every_entrypoint_has_a_trigger() -> None:
    assert {"channel_message", "direct", "cron"} == set(get_args(Entrypoint))
