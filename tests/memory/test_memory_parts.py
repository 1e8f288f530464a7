"""Pure parts of the memory: chunks, postings, sections, cursors, contents."""

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.memory.document_files import sections
from backends.memory.lexicon.postings import (
    RECORD,
    Bm25,
    Scored,
    bucket_of,
    keep,
    measure,
    pack_summary,
    pack_terms,
    read_summaries,
    score,
    split,
    unpack,
)
from backends.postgres.cursors import read_cursor, write_cursor
from contracts.errors import InvalidRequest
from contracts.memory.api import StoreRequest
from contracts.memory.items import described, text_of
from services.memory.chunking import ChunkSize, chunk
from services.memory.lexical import K1, B, bm25, ceiling, grams, length, weigh

SIZE = ChunkSize(most=100, overlap=20)
words = st.text(alphabet="абвгдеєжзиіїклмн'’.,;!? \n", max_size=1_200)


@given(words)
def test_chunks_are_bounded_and_hold_every_word(text: str):
    chunks = chunk(text, SIZE)
    assert all(0 < len(part) <= SIZE.most for part in chunks)
    assert all(part in text for part in chunks)
    position = 0
    for (
        part
    ) in chunks:  # nothing but blanks lies between one chunk's end and the next one's beginning
        start = text.index(part, max(0, position - SIZE.most))
        assert not text[position:start].strip()
        position = max(position, start + len(part))
    assert not text[position:].strip()


def test_text_is_cut_at_the_best_place():
    text = (
        "Перше речення про воду. "
        + "слово " * 9
        + "кінець абзацу.\n\n"
        + "Другий абзац про землю " * 3
    )
    assert chunk(text, SIZE)[0].endswith("кінець абзацу.")


def search(
    texts: Mapping[int, str], query: str, allowed: set[int] | None = None
) -> tuple[Scored, dict[int, float], float]:
    """The scoring of the postings, and what the definition of BM25 gives."""
    counted = {number: grams(text) for number, text in texts.items()}
    records = unpack(b"".join(pack_terms(number, counts) for number, counts in counted.items()))
    asked = grams(query)
    chunks, total = measure(records)

    def weights(frequencies: Mapping[str, int], documents: int) -> list[tuple[str, float]]:
        return [(entry.gram, entry.weight) for entry in weigh(asked, frequencies, documents)]

    found = score(
        records, chunks=chunks, length=total, grams=list(asked), weigh=weights, bm25=Bm25(K1, B),
        allowed=None if allowed is None else np.array(sorted(allowed), np.uint32), limit=100,
    )  # fmt: skip
    frequencies = {gram: sum(gram in counts for counts in counted.values()) for gram in asked}
    question = weigh(asked, frequencies, len(texts))
    average = sum(map(length, counted.values())) / len(texts)
    expected = {number: bm25(question, counts, average) for number, counts in counted.items()}
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


def test_counts_and_lengths_over_the_field_are_cut():
    records = unpack(pack_terms(1, {"абвг": 70_000}))
    assert (records["length"][0], records["count"][0]) == (65_535, 255)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n\n", []),
        ("без заголовка", [("", 1, "без заголовка")]),
        ("# А\nа\n## Б\nб\n# В\nв", [("А", 2, "а"), ("А > Б", 4, "б"), ("В", 6, "в")]),
        ("### Глибоко\nа\n# Високо\nб", [("Глибоко", 2, "а"), ("Високо", 4, "б")]),
        ("# А ##\n\n\nтекст", [("А", 4, "текст")]),
        ("# Лише заголовок", []),
        ("#не заголовок", [("", 1, "#не заголовок")]),
        ("```\n# код\n```\n# А\nа", [("", 1, "```\n# код\n```"), ("А", 5, "а")]),
        ("# А\r\nа\r\n", [("А", 2, "а")]),
    ],
)
def test_sections(text: str, expected: list[tuple[str, int, str]]):
    assert [
        (section.heading, section.line, section.text) for section in sections(text, markdown=True)
    ] == expected


def test_plain_text_has_no_headings():
    assert [
        (section.heading, section.line) for section in sections("# 1\n# 2", markdown=False)
    ] == [("", 1)]


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
