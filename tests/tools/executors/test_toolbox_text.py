"""`text.summary_stats`: counts that add up, for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.toolbox.text import MAX_CHARS, summary_stats


def stats(text, **args):
    return summary_stats({"text": text, **args}, {})


@given(st.text(max_size=400), st.integers(0, 50))
def test_the_numbers_fit_together(text, top):
    found = stats(text, top=top)
    assert found["characters"] == len(text)
    assert 0 <= found["unique_words"] <= found["words"] <= len(text)
    assert (found["words"] == 0) == (found["sentences"] == 0) == (found["reading_time_s"] == 0)
    assert len(found["top_words"]) <= top
    counts = [entry["count"] for entry in found["top_words"]]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) <= found["words"]
    assert found["language"] in {"uk", "en", "unknown"}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Привіт! Як ваші справи сьогодні?", "uk"),
        ("Це проста перевірка тексту для кооперативу", "uk"),
        ("The members of the co-operative met on Friday and agreed.", "en"),
        ("Это простая проверка, которую нужно было выполнить", "unknown"),
        ("12345 !!!", "unknown"),
        ("", "unknown"),
        ("zzz qqq www xxx", "unknown"),
        ("Запуск API у проєкті заплановано на жовтень", "uk"),
    ],
)
def test_languages(text, language):
    assert stats(text)["language"] == language


def test_words_are_counted_across_apostrophes_and_without_stop_words():
    found = stats("Пам’ять і пам'ять: пам\u02bcять! А це що?", top=3)
    assert found["top_words"] == [{"word": "пам'ять", "count": 3}]
    assert found["words"] == 7
    assert found["sentences"] == 2


def test_paragraphs_and_reading_time():
    found = stats("word " * 238 + "\n\n" + "the " * 238)
    assert found["paragraphs"] == 2
    assert found["reading_time_s"] == 120


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"text": 1},
        {"text": None},
        {"text": "a", "top": 51},
        {"text": "a", "top": "5"},
        {"text": "a", "top": True},
    ],
)
def test_wrong_arguments_are_named(args):
    with pytest.raises(ValueError, match=r"`(text|top)` must be"):
        summary_stats(args, {})


def test_long_texts_are_refused():
    with pytest.raises(ValueError, match="at most"):
        stats("a" * (MAX_CHARS + 1))


def test_a_whole_number_may_be_written_as_a_float_as_json_schema_allows():
    assert stats("один два", top=1.0) == stats("один два", top=1)
