"""Previews and pages of results: pure functions."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import InvalidRequest
from contracts.tools.ledger import StoredResult
from services.tools.outcomes import PageRequest, page, preview, to_text
from services.tools.schemas import CompiledSchema

NOW = datetime(2026, 1, 1, tzinfo=UTC)


RESULTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=60) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=60,
)


@given(result=RESULTS, limit=st.integers(256, 5_000))
def test_a_preview_fits(result, limit):
    shown = preview(result, None, limit)
    assert shown is None or len(orjson.dumps(shown)) <= limit


def test_a_preview_matches_the_schema_or_is_none():
    schema = CompiledSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"minLength": 150}},
            },
        }
    )
    rows = [{"name": "н" * 200} for _ in range(1_000)]
    shown = preview(rows, schema, 4_000)
    assert shown
    assert schema.violation(shown) is None
    assert preview(rows, CompiledSchema({"minItems": 500}), 4_000) is None


@given(items=st.lists(st.text(max_size=20), max_size=40), limit=st.integers(1, 10))
def test_pages_of_items_are_the_whole(items, limit):
    assert _read(items, limit, "result") == items


@given(text=st.text(max_size=500), limit=st.integers(1, 100))
def test_pages_of_text_are_the_whole(text, limit):
    assert orjson.loads("".join(_read(text, limit, "text"))) == text


def _read(result, limit, part):
    items = len(result) if isinstance(result, list) else None
    stored = StoredResult(UUID(int=1), to_text(result), items, NOW)
    found, offset = [], 0
    while offset is not None:
        one = page(stored, PageRequest(microdao_id="m", offset=offset, limit=limit))
        found += getattr(one, part)
        offset = one.next_offset
    return found


def test_an_offset_beyond_the_end_is_refused():
    stored = StoredResult(UUID(int=1), "[1]", 1, NOW)
    with pytest.raises(InvalidRequest):
        page(stored, PageRequest(microdao_id="m", offset=2))
