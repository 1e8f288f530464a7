"""Contents and meta: how they are checked, searched and shown."""

from datetime import UTC, datetime

import pytest

from contracts.memory.api import StoreRequest
from contracts.memory.items import described, text_of


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"text": " а "}, "а"),
        ({"agent_reply": "б", "user_message": "а"}, "а\nб"),
        ({"user_message": "а", "agent_reply": None}, "а"),
        (
            {"title": "а", "tags": ["б", "в"], "n": {"k": 1}, "empty": ""},
            "title: а\ntags: б\ntags: в\nn.k: 1",
        ),
        ({"text": ["а"]}, "text: а"),
    ],
)
def test_text_of_contents(content: dict[str, object], text: str):
    assert text_of(content) == text


def test_callers_keys_win_over_ours():
    meta = described(
        {"source": "matrix"},
        source="channel:1",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        origin={"id": "mem-1"},
    )
    assert meta == {
        "source": "matrix",
        "timestamp": "2026-01-01T00:00:00+00:00",
        "memory": {"id": "mem-1"},
    }


def test_nesting_is_checked_without_recursion():
    content: dict[str, object] = {"text": "а"}
    for _ in range(5_000):
        content = {"a": content}
    with pytest.raises(ValueError, match=r"nested|recursion"):
        StoreRequest(agent_id="a", microdao_id="m", kind="task", content=content)
