"""Lemmas of words, and the terms that chunks are stored with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.memory.lexicon import lemmas as lemma_module
from backends.memory.lexicon.grams import grams, words
from backends.memory.lexicon.lemmas import LONGEST, MARK, STOP_WORDS, lemmas
from backends.memory.lexicon.postings import pack_terms, unpack
from backends.memory.lexicon.terms import fingerprint, terms

texts = st.text(st.characters(codec="utf-8"), max_size=80)


@pytest.mark.parametrize(
    ("lemma", "forms"),
    [
        ("кіт", "кіт кота котові котах КОТА"),
        ("піти", "піти пішла пішов"),
        ("пять", "п'ять п’ять п'ятьма"),
        ("спільнота", "спільнота спільнотою спіль\u00adнот cпільноті"),
        ("go", "go goes went going Went"),
        ("mouse", "mouse mice"),
        ("mary", "Mary Mary's"),
    ],
)
def test_forms_of_a_word_are_one_lemma(lemma, forms):
    assert lemmas(forms) == {MARK + lemma: len(forms.split())}


def test_names_codes_and_numbers_stay_as_they_are():
    assert set(lemmas("Oduya, GOV-58, мікродао, 2026, μηλο")) == {
        f"{MARK}{word}" for word in ("oduya", "gov", "58", "мікродао", "2026", "μηλο")
    }


def test_stop_words_are_left_out_in_every_form():
    assert lemmas("Коли і де мав бути? When was it, and who is there?") == {}
    assert lemmas("кого котрою with whom the") == {}
    assert all(words(word) == [word] for word in STOP_WORDS)


def test_words_over_the_bound_are_neither_looked_up_nor_kept():
    kept = lemma_module._looked_up.cache_info().currsize
    long = "а" * (LONGEST + 1)
    assert lemmas(f"{long} {long}") == {MARK + long: 2}
    assert lemma_module._looked_up.cache_info().currsize == kept


def test_of_a_long_question_only_its_first_words_are_looked_up():
    lemma_module._looked_up.cache_clear()
    assert lemmas("Where did the mice go? " + "went to Kyiv " * 9 + "by train", 3) == {
        f"{MARK}mouse": 1,
        f"{MARK}go": 10,
    }
    assert lemma_module._looked_up.cache_info().currsize <= 3 + len(STOP_WORDS)


@given(texts)
def test_a_gram_is_never_a_lemma(text):
    found = lemmas(text)
    assert all(term.startswith(MARK) and count >= 1 for term, count in found.items())
    assert not any(gram.startswith(MARK) for gram in grams(text))
    assert sum(found.values()) <= len(words(text))
    assert terms(text) == {**grams(text), **found}


@given(texts)
def test_a_chunk_is_as_long_as_its_grams(text):
    records = unpack(pack_terms(1, terms(text)))
    assert len(records) == len(grams(text)) + len(lemmas(text))
    assert set(records["length"]) <= {sum(grams(text).values())}


@pytest.mark.parametrize(
    ("changed", "value"),
    [("STOP_WORDS", frozenset()), ("lemmas", lambda _: {}), ("grams", lambda _: {})],
)
def test_the_fingerprint_changes_with_the_terms(monkeypatch, changed, value):
    before = fingerprint()
    assert fingerprint() == before
    monkeypatch.setattr(f"backends.memory.lexicon.terms.{changed}", value)
    assert fingerprint() != before


def test_the_fingerprint_changes_with_the_dictionaries(monkeypatch):
    before = fingerprint()
    monkeypatch.setattr("simplemma.__version__", "0")
    assert fingerprint() != before
