"""The shape of a usage record: it can always be stored, and its ids grow with time."""

import random
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.identity import new_id
from contracts.llm.answers import TokenUsage
from contracts.llm.usage import (
    ATTEMPT_FIELDS,
    MAX_TEXT,
    AttemptRecord,
    UsageFilter,
    tokens_of,
)
from tests.support.llm.usage import usage_record

any_text = st.text(st.characters(codec=None), max_size=400)


def test_ids_are_unique_and_grow_with_time() -> None:
    ids = [new_id() for _ in range(2000)]
    time.sleep(0.002)
    later = new_id()
    assert len(set(ids)) == len(ids)
    assert all(identity < later for identity in ids)
    assert {identity.version for identity in ids} == {7}
    assert abs((later.int >> 80) / 1000 - time.time()) < 5


def test_ids_do_not_follow_from_a_generator_that_can_be_foretold() -> None:
    """What is random in an id: all but the time, the version and the variant."""
    found = set()
    for _ in range(2):
        random.seed(7)
        identity = new_id().int
        found.add((identity & (2**62 - 1), identity >> 64 & 0xFFF))
    assert len(found) == 2


@given(any_text)
def test_any_name_becomes_one_that_the_database_can_hold(text: str) -> None:
    record = usage_record(agent_id=text)
    assert "\0" not in record.agent_id
    assert len(record.agent_id) <= MAX_TEXT
    assert orjson.loads(orjson.dumps(record, default=str))["agent_id"] == record.agent_id


@given(st.text(max_size=MAX_TEXT).filter(lambda text: "\0" not in text))
def test_a_good_name_stays_as_it_is(text: str) -> None:
    assert usage_record(agent_id=text).agent_id == text


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": 2**60},
        {"latency_ms": float("nan")},
        {"latency_ms": float("inf")},
        {"cost_usd": Decimal("NaN")},
        {"cost_usd": Decimal(-1)},
        {"occurred_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - the point of it
        {"occurred_at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))},
    ],
)
def test_impossible_values_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"negative|zone|range|years"):
        usage_record(**change)


def test_money_is_kept_to_a_billionth_and_time_in_utc() -> None:
    kyiv = timezone(timedelta(hours=2))
    record = usage_record(
        cost_usd=Decimal("0.00000000149"), occurred_at=datetime(2026, 1, 1, 1, tzinfo=kyiv)
    )
    assert record.cost_usd == Decimal("0.000000001")
    assert record.occurred_at == datetime(2025, 12, 31, 23, tzinfo=UTC)
    assert record.occurred_at.tzinfo is UTC


def test_whatever_a_provider_counts_is_recorded() -> None:
    assert TokenUsage.model_fields.keys() <= set(ATTEMPT_FIELDS)
    counted = TokenUsage(prompt_tokens=3, total_tokens=4, cached_tokens=2, estimated=True)
    record = AttemptRecord("openai", "gpt", "ok", 1.0, **tokens_of(counted))
    assert (record.prompt_tokens, record.completion_tokens, record.total_tokens) == (3, 0, 4)
    assert (record.cached_tokens, record.reasoning_tokens, record.estimated) == (2, 0, True)


def test_a_filter_names_each_key_once_and_knows_no_others() -> None:
    assert UsageFilter(group_by=("day", "agent", "day")).group_by == ("day", "agent")
    with pytest.raises(ValidationError):
        UsageFilter(group_by=("occurred_at; DROP TABLE llm_usage",))  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        UsageFilter(limit=1001)
