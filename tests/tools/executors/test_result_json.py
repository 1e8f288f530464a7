"""Parsing of results: valid JSON of a bounded depth."""

import orjson
import pytest
from hypothesis import given

from executors.results import MAX_DEPTH, InvalidResult, parse_result
from tests.support.tools.json_values import json_values


@given(json_values)
def test_valid_json_is_parsed(value):
    assert parse_result(orjson.dumps(value)) == value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"  ",
        b"{'a': 1}",
        b"NaN",
        b"[1",
        b'"\xff"',
        b"[" * 2000 + b"]" * 2000,
        b"[" * 65 + b"]" * 65,
    ],
)
def test_invalid_and_too_deep_json_is_refused(raw):
    with pytest.raises(InvalidResult):
        parse_result(raw)


def test_the_depth_bound_is_exact():
    assert parse_result(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    wide = b"[" + b",".join([b"{}"] * 500) + b"]"
    assert len(parse_result(wide)) == 500
