"""Removing from vectors what all texts of a language share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.engines.embedder import LocalEmbedderSettings
from deployments.engines.neutral import LanguageParts, cyrillic_share, joined_sentences

RANDOM = np.random.default_rng(1)
COMMON, UKRAINIAN, ENGLISH = (RANDOM.standard_normal(64).astype("f4") for _ in range(3))


def vector(meaning, language, noise=0.0):
    """A synthetic multilingual model: a common vector, one per language, and the meaning."""
    raw = 3 * COMMON + 1.5 * language + meaning + noise * RANDOM.standard_normal(64)
    return (raw / np.linalg.norm(raw)).astype("f4")


def measured():
    means = {"uk": UKRAINIAN, "en": ENGLISH}

    def encode(texts):
        language = means["uk" if cyrillic_share(texts[0]) > 0.5 else "en"]
        return np.stack([vector(RANDOM.standard_normal(64), language) for _ in texts])

    return LanguageParts.measured(encode)


def test_the_answer_in_the_other_language_overtakes_another_topic_in_the_same():
    parts, topic, other = measured(), RANDOM.standard_normal(64), RANDOM.standard_normal(64)
    question = ("Де ключ?", vector(topic, UKRAINIAN))
    answer, miss = (
        ("The key is here", vector(topic, ENGLISH)),
        ("Автобус поїхав", vector(other, UKRAINIAN)),
    )
    assert question[1] @ miss[1] > question[1] @ answer[1]
    asked, right, wrong = (parts.without(*entry) for entry in (question, answer, miss))
    assert asked @ right > asked @ wrong + 0.3
    assert abs(asked @ wrong) < 0.4  # unrelated texts are about orthogonal now


def test_vectors_stay_of_unit_length_and_of_four_byte_floats():
    found = measured().without("будь-що", vector(RANDOM.standard_normal(64), UKRAINIAN))
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    assert found.dtype == np.dtype("<f4")


def test_a_vector_that_is_nothing_but_the_common_part_survives():
    parts = LanguageParts(np.array([1, 0], "f4"), np.array([1, 0], "f4"))
    assert parts.without("x", np.array([1, 0], "f4")).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "share"),
    [("Ключ", 1.0), ("key", 0.0), ("42 — 🙂", 0.5), ("", 0.5), ("API ключі", pytest.approx(5 / 8))],
)
def test_share_of_cyrillic(text, share):
    assert cyrillic_share(text) == share


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_the_share_of_cyrillic_lies_between_zero_and_one(text):
    assert 0 <= cyrillic_share(text) <= 1


def test_the_sentences_exist_in_both_languages_and_differ():
    ukrainian, english = joined_sentences()
    assert len(ukrainian) == len(english) == len(set(ukrainian)) == len(set(english)) == 64
    assert all(cyrillic_share(text) > 0.95 for text in ukrainian)
    assert all(cyrillic_share(text) < 0.05 for text in english)


def test_memorys_vectors_have_a_version_of_their_own():
    settings = {"served_name": "e5", "version": "e5@1", "dimension": 384}
    assert LocalEmbedderSettings(**settings).memory_space.model_version == "e5@1+neutral1"
    assert LocalEmbedderSettings(**settings).space.model_version == "e5@1"
    assert (
        LocalEmbedderSettings(**settings, language_neutral=False).memory_space.model_version
        == "e5@1"
    )
