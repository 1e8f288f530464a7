"""Words and grams, and their weights in BM25."""

import math
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.memory.lexicon.grams import GRAM, grams, normalise, words
from backends.memory.lexicon.index import MAX_GRAMS, MAX_WORDS
from backends.memory.lexicon.scoring import K1, MAX_QUERY_GRAMS, ceiling, rarity, weigh
from benchmarks.memory.bm25 import bm25, length
from contracts.memory.api import MAX_QUERY_CHARS

texts = st.text(st.characters(codec="utf-8"), max_size=80)
counts = st.dictionaries(st.text("абвгд", min_size=1, max_size=4), st.integers(1, 9), max_size=12)


@pytest.mark.parametrize("apostrophe", "'’ʼ‘`´′＇")
def test_every_apostrophe_inside_a_word_is_the_same(apostrophe):
    assert words(f"п{apostrophe}ять сім{apostrophe}їв") == ["пять", "сімїв"]


def test_quotes_around_a_word_are_no_part_of_it():
    assert words("'вузлик' ’дім’ «хата»") == ["вузлик", "дім", "хата"]


def test_stress_marks_and_invisible_characters_do_not_matter_but_letters_with_marks_stay_letters():
    assert words("за\u0301мок спіль\u00adнота да\u200bо") == ["замок", "спільнота", "дао"]
    assert words("їжак ЙОД ґанок") == ["їжак", "йод", "ґанок"]
    assert normalise(unicodedata.normalize("NFD", "Їжак і йод")) == normalise("Їжак і йод")


def test_latin_letters_that_slipped_into_a_cyrillic_word_are_repaired():
    assert words("cпільнотa") == ["спільнота"]
    assert words("cat") == ["cat"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("спільнота", "спільнотою"),
        ("оренда", "оренді"),
        ("вулики", "вуликами"),
        ("протокол", "протоколів"),
        ("meeting", "meetings"),
    ],
)
def test_inflected_forms_share_most_of_their_grams(one, other):
    shared = grams(one).keys() & grams(other).keys()
    assert len(shared) >= len(grams(one)) / 2


@pytest.mark.parametrize(
    ("ukrainian", "english"),
    [("токен", "token"), ("протокол", "protocol"), ("Ілона", "Ilona"), ("контракт", "contract")],
)
def test_names_and_loanwords_meet_across_scripts(ukrainian, english):
    shared = grams(ukrainian).keys() & grams(english).keys()
    assert len(shared) >= len(grams(ukrainian)) / 2


def test_codes_and_numbers_are_words():
    assert words("GOV-58, E-417 і 2.3.1") == ["gov", "58", "e", "417", "і", "2", "3", "1"]
    assert grams("я 7") == {"_я_": 1, "_7_": 1}
    assert grams("дао") == {"_dao": 1, "dao_": 1}


@given(texts)
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(texts)
def test_grams_are_bounded_and_counted(text):
    found = grams(text)
    assert all(len(gram) <= GRAM and count >= 1 for gram, count in found.items())
    assert length(found) == sum(max(1, len(f"_{word}_") - GRAM + 1) for word in _folded(text))


def _folded(text):
    """Returns the words without ь and ъ, as grams have them."""
    return [word.replace("ь", "").replace("ъ", "") for word in words(text)]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_rarity_falls_with_frequency_and_is_never_negative(documents, frequency):
    assert rarity(documents, frequency) >= 0
    if frequency < documents:
        assert rarity(documents, frequency) > rarity(documents, frequency + 1)


@given(counts, st.dictionaries(st.text("абвгд", min_size=1, max_size=4), st.integers(0, 50)))
def test_the_rarest_grams_come_first_and_few_enough(question, frequencies):
    weighed = weigh(question, frequencies, documents=50, limit=5)
    assert len(weighed) == min(5, len(question))
    assert [entry.weight for entry in weighed] == sorted(
        (entry.weight for entry in weighed), reverse=True
    )


def test_a_gram_that_occurs_nowhere_is_still_part_of_the_question():
    weighed = weigh({"є": 1, "нема": 1}, {"є": 10}, documents=10)
    assert weighed[0].gram == "нема"
    assert ceiling(weighed) > bm25(weighed, {"є": 1}, average_length=1) * 2


def test_long_questions_are_bounded():
    assert (
        len(weigh({str(number): 1 for number in range(500)}, {}, documents=10)) == MAX_QUERY_GRAMS
    )


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (
            "MEMORY_ORCHESTRATOR_SPEC.md",
            (
                f"| query | {MAX_QUERY_CHARS:,} characters; of its first {MAX_GRAMS} grams the "
                f"{MAX_QUERY_GRAMS} rarest are looked for, and its first {MAX_WORDS} words | 400 |"
            ),
        ),
        (
            "decisions/051-grams-in-one-alphabet.md",
            f"Of a question's first {MAX_GRAMS} grams the {MAX_QUERY_GRAMS} rarest are looked for.",
        ),
    ],
)
def test_the_documents_state_the_bounds_of_a_question(document, sentence):
    text = (Path(__file__).parents[2] / "docs" / document).read_text()
    assert sentence in " ".join(text.split())


@given(counts, counts)
def test_score_is_bounded_and_grows_with_what_is_found(question, text):
    asked = weigh(question, {}, documents=100)
    score = bm25(asked, text, average_length=max(1, length(text)))
    assert 0 <= score <= ceiling(asked) * (K1 + 1) + 1e-9
    for gram in question:
        more = dict.fromkeys((*text, gram), 1) | text
        assert bm25(asked, more, average_length=10) >= 0


def test_a_text_of_average_length_with_every_gram_once_reaches_the_ceiling():
    asked = weigh(grams("оренда зали"), {}, documents=100)
    text = grams("оренда зали")
    assert math.isclose(bm25(asked, text, average_length=length(text)), ceiling(asked))
