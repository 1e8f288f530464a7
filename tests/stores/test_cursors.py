"""Cursors of pages."""

from datetime import UTC, datetime

import pytest

from backends.postgres.pages import read_cursor, write_cursor
from contracts.errors import InvalidRequest


def test_cursor_belongs_to_its_query():
    at = datetime(2026, 1, 1, tzinfo=UTC)
    cursor = write_cursor(at, "mem-1", {"kind": "task"})
    assert read_cursor(cursor, {"kind": "task"}) == (at, "mem-1")
    for query, given_cursor in (
        ({"kind": "kb"}, cursor),
        ({"kind": "task"}, "x"),
        ({"kind": "task"}, "WzEsMiwzXQ=="),
        ({"kind": "task"}, "ї"),
    ):
        with pytest.raises(InvalidRequest):
            read_cursor(given_cursor, query)
