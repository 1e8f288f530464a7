"""Records of the lexical index, and BM25 over them."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.memory.lexicon.grams import grams
from backends.memory.lexicon.lemmas import lemmas
from backends.memory.lexicon.postings import (
    RECORD,
    bucket_of,
    in_order,
    in_slices,
    keep,
    measure,
    pack_summary,
    pack_terms,
    read_summaries,
    split,
    unpack,
)
from backends.memory.lexicon.scoring import Scored, ceiling, score, weigh
from backends.memory.lexicon.terms import terms
from benchmarks.memory.bm25 import bm25, length


def search(
    texts: Mapping[int, str],
    query: str,
    allowed: set[int] | None = None,
    cut: Callable[[str], dict[str, int]] = grams,
) -> tuple[Scored, dict[int, float], float]:
    """Returns the scoring of the postings, and scores and ceiling by BM25's definition."""
    lengths = {number: length(grams(text)) for number, text in texts.items()}
    counted = {number: cut(text) for number, text in texts.items()}
    records = unpack(b"".join(pack_terms(number, terms(text)) for number, text in texts.items()))
    asked = cut(query)
    chunks, total = measure(records)
    passing = None if allowed is None else np.array(sorted(allowed), np.uint32)
    found = score(records, asked, chunks=chunks, length=total, allowed=passing, limit=100)
    frequencies = {gram: sum(gram in counts for counts in counted.values()) for gram in asked}
    question = weigh(asked, frequencies, len(texts))
    average = sum(lengths.values()) / len(texts)
    # A text is as long, relative to the others, as its grams are.
    expected = {
        number: bm25(question, counts, average * length(counts) / lengths[number])
        for number, counts in counted.items()
    }
    return (
        found,
        {number: points for number, points in expected.items() if points > 0},
        ceiling(question),
    )


sentence = st.text(alphabet="абвгд є", min_size=1, max_size=60).filter(lambda text: text.strip())


@given(st.lists(sentence, min_size=1, max_size=12), sentence)
def test_postings_score_as_bm25_is_defined(texts: list[str], query: str):
    numbered = dict(enumerate(texts, 7))
    found, expected, top = search(numbered, query)
    assert dict(zip(found.chunks, found.scores, strict=True)) == pytest.approx(expected)
    assert found.scores == sorted(found.scores, reverse=True)
    assert found.ceiling == pytest.approx(top)


@given(st.lists(sentence, min_size=1, max_size=12), sentence)
def test_lemmas_score_as_bm25_is_defined(texts: list[str], query: str):
    found, expected, top = search(dict(enumerate(texts, 7)), query, cut=lemmas)
    assert dict(zip(found.chunks, found.scores, strict=True)) == pytest.approx(expected)
    assert found.ceiling == pytest.approx(top)


def test_postings_of_far_apart_chunks_score_the_same():
    texts = {3: "спільна каса", 4_000_000_000: "спільна бібліотека", 17: "ліс"}
    found, expected, _ = search(texts, "спільна каса")
    assert dict(zip(found.chunks, found.scores, strict=True)) == pytest.approx(expected)


def test_filtered_postings_keep_their_weights():
    texts = {1: "спільна каса", 2: "спільна каса громади", 3: "ліс"}
    unfiltered, _, _ = search(texts, "каса")
    filtered, _, _ = search(texts, "каса", allowed={2, 3})
    assert filtered.chunks == [2]
    assert filtered.scores[0] == pytest.approx(
        dict(zip(unfiltered.chunks, unfiltered.scores, strict=True))[2]
    )


def test_records_are_eleven_bytes_and_find_their_bucket():
    counts = grams("Спільнота має бюджет і правила")
    records = unpack(pack_terms(9, counts))
    assert RECORD.itemsize == 11
    assert len(records) == len(counts)
    for level in (1, 2):
        parts = split(records, level)
        assert sum(map(len, parts.values())) == len(records)
        assert set(parts) == {bucket_of(gram, level) for gram in counts}
    assert measure(records) == (1, length(counts))
    assert len(keep(records, np.array([8], np.uint32))) == 0
    assert read_summaries([pack_summary(2, 30), pack_summary(1, 5)]) == (3, 35)
    assert split(records[:0], 1) == {}


@given(st.lists(sentence, min_size=1, max_size=12), st.integers(1, 30), st.sampled_from([1, 2]))
def test_slices_of_parts_are_the_split_of_the_whole(texts: list[str], most: int, level: int):
    parts = [unpack(pack_terms(number, terms(text))) for number, text in enumerate(texts)]
    whole = np.concatenate([unpack(b""), *parts])
    slices = list(in_slices([in_order(part)[0] for part in parts], level, most))
    assert len(slices) == 1 + len(whole) // most
    joined = [(bucket, data.tobytes()) for taken in slices for bucket, data in taken.items()]
    assert joined == [
        (bucket, data.tobytes()) for bucket, data in sorted(split(whole, level).items())
    ]
    assert measure(in_order(whole)[1]) == measure(whole)


def test_counts_and_lengths_over_the_field_are_cut():
    records = unpack(pack_terms(1, {"абвг": 70_000}))
    assert (records["length"][0], records["count"][0]) == (65_535, 255)
