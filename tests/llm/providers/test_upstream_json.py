"""JSON with the faults that upstreams are known for."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.upstream_json import (
    MAX_REPAIRED_BYTES,
    MAX_REPAIRED_PER_ANSWER,
    REPAIR_COST,
    JsonTexts,
    decoded,
    encoded,
)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (rb'"a\ud83db"', "a\ufffdb"),
        (rb'"a\ude00"', "a\ufffd"),
        (rb'"\ud83d\ud83d\ude00"', "\ufffd😀"),
        (rb'"\\ud83d\ud83d"', "\\ud83d\ufffd"),
        (rb'"\uD83D\u0041"', "\ufffdA"),
        (b'"a\xed\xa0\xbdb"', "a\ufffd\ufffd\ufffdb"),
        (b'"\xd0\xb0\xd0"', "а\ufffd"),
        (b'\xef\xbb\xbf"a"', "a"),
        (b'"a\nb\tc"', "a\nb\tc"),
    ],
)
def test_text_is_mended(raw, text):
    value = decoded(raw)
    assert value == text
    value.encode()


def test_numbers_that_are_none_in_json_are_taken():
    assert decoded(b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 7}')["d"] == 7


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"<html>",
        b'{"a":1}{"b":2}',
        b"[" * 100_000,
        b'"' + b"x" * MAX_REPAIRED_BYTES,
        b"1" * 5_000,
    ],
)
def test_invalid_json_is_refused(raw):
    with pytest.raises(ValueError):
        decoded(raw)


def test_only_short_texts_are_mended():
    half = rb'"\ud83d'
    assert MAX_REPAIRED_BYTES <= 256 << 10, "each costs the event loop some tens of milliseconds"
    assert decoded(half + b"x" * (MAX_REPAIRED_BYTES - len(half) - 1) + b'"').startswith("\ufffdx")
    with pytest.raises(ValueError):
        decoded(half + b"x" * (MAX_REPAIRED_BYTES - len(half)) + b'"')


@pytest.mark.parametrize("size", [8, 1_000, MAX_REPAIRED_BYTES])
def test_repairs_of_one_answer_are_bounded(size):
    texts, text = JsonTexts(), rb'"\ud83d'.ljust(size - 1, b"x") + b'"'
    for _ in range(MAX_REPAIRED_PER_ANSWER // (size + REPAIR_COST)):
        assert texts.decoded(text).startswith("\ufffd")
    with pytest.raises(ValueError):
        texts.decoded(text)
    assert texts.decoded(b'"whole"') == "whole", "well-formed texts cost nothing"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=9,
)


@given(_VALUES)
def test_valid_json_is_read_as_it_is_and_written_again(value):
    once = decoded(json.dumps(value).encode())
    assert decoded(encoded(once).encode()) == once
    assert once == value or any(len(digits) > 17 for digits in json.dumps(value).split())
