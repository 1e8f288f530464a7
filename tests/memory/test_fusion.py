"""Fusion: evidence, gates and order."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.memory.ports import ItemCandidate
from contracts.memory.settings import FusionSettings
from services.memory.fusion import DEFAULT, fuse

NOW = datetime(2025, 3, 1, tzinfo=UTC)
TIMELESS = FusionSettings(recency_weight=0.0)


def found(*scores, age_days=0.0):
    """Candidates `name: score`, best first."""
    entries = sorted(scores, key=lambda entry: -entry[1])
    return [
        ItemCandidate(name, score, NOW - timedelta(days=age_days), "conversation")
        for name, score in entries
    ]


def order(dense=None, lexical=None, words=None, *, ceiling=10.0, settings=TIMELESS, limit=10):
    given = (("dense", dense), ("lexical", lexical), ("words", words))
    arms = {name: arm for name, arm in given if arm is not None}
    fused = fuse(arms, ceiling, ceiling, now=NOW, limit=limit, settings=settings)
    return [entry.id for entry in fused]


def test_a_code_found_in_one_text_ranks_it_above_similar_texts():
    dense = found(("alike", 0.45), ("near", 0.40), ("right", 0.35))
    assert order(dense, found(("right", 9.0), ("near", 1.0))) == ["right", "alike", "near"]


def test_a_word_in_another_form_raises_a_text_that_shares_no_gram():
    dense = found(("alike", 0.40), ("right", 0.35))
    went = found(("right", 9.0))
    assert order(dense, [], went) == ["right", "alike"]
    assert order(dense, [], went, settings=FusionSettings(word_weight=0)) == ["alike", "right"]


def test_words_and_grams_add_up_to_the_documented_score():
    arms = {"dense": found(("a", 0.55)), "lexical": found(("a", 9.0)), "words": found(("a", 4.5))}
    (both,) = fuse(arms, 10.0, 9.0, now=NOW, limit=1, settings=TIMELESS)
    assert both.score == pytest.approx(1 - (1 - 0.5) * (1 - 0.4 * 0.9) * (1 - 0.3 * 0.5))


def test_a_word_of_ten_texts_is_no_evidence():
    """Ten texts have the same word, so it says nothing; grams count half of that."""
    dense = found(("answer", 0.40), ("crowd0", 0.39))
    crowd = found(*((f"crowd{number}", 5.0) for number in range(10)))
    assert order(dense, [], crowd)[0] == "answer"
    assert order(dense, [], crowd[:9])[0] == "crowd0"
    assert order(dense, crowd)[0] == "crowd0"


def test_chance_matches_do_not_change_the_dense_order():
    dense = found(("answer", 0.35), ("other", 0.34), ("third", 0.2))
    assert order(dense, found(("third", 0.9), ("other", 0.8), ("answer", 0.1))) == [
        "answer",
        "other",
        "third",
    ]


def test_grams_of_every_text_are_little_evidence():
    """Fifteen texts of one template share half of the question, so that half is no evidence."""
    crowd = [(f"crowd{number}", 5.0) for number in range(15)]
    dense = found(("answer", 0.40), *((name, 0.3) for name, _ in crowd))
    common = fuse(
        {"dense": dense, "lexical": found(*crowd)},
        10.0,
        now=NOW,
        limit=20,
        settings=TIMELESS,
    )
    alone = fuse(
        {"dense": dense, "lexical": found(crowd[0])},
        10.0,
        now=NOW,
        limit=20,
        settings=TIMELESS,
    )
    assert common[0].id == "answer"
    assert alone[0].id == "crowd0"


def test_an_item_of_the_lexical_arm_alone_is_at_most_as_near_as_the_last_dense_one():
    dense = found(("a", 0.6), ("b", 0.5))
    assert order(dense, found(("c", 0.9), ("a", 0.8))) == ["a", "b", "c"]


@pytest.mark.parametrize(("arm", "expected"), [("dense", ["x", "y"]), ("lexical", ["x", "y"])])
def test_one_arm_alone_keeps_its_order(arm, expected):
    arms = {"dense": found(("x", 0.5), ("y", 0.4)), "lexical": found(("x", 8.0), ("y", 4.0))}
    assert order(**{arm: arms[arm]}) == expected


def test_nothing_found_is_no_error():
    assert fuse({"dense": [], "lexical": []}, 0.0, now=NOW, limit=5) == []
    assert fuse({}, 0.0, now=NOW, limit=5) == []


def test_recent_events_alone_are_found_newest_first():
    recent = [
        ItemCandidate(str(age), 0.0, NOW - timedelta(days=age), "conversation", tier="short-term")
        for age in (0, 1, 30)
    ]
    assert [entry.id for entry in fuse({"recent": recent}, 0.0, now=NOW, limit=5)] == [
        "0",
        "1",
        "30",
    ]


def test_age_decides_between_equals_and_never_between_unequal_ones():
    fresh, old = found(("fresh", 0.50)), found(("old", 0.50), age_days=365)
    assert order(old + fresh, settings=DEFAULT) == ["fresh", "old"]
    old = found(("old", 0.53), age_days=365)
    assert order(old + fresh, settings=DEFAULT) == ["old", "fresh"]


def test_an_item_has_its_rank_in_each_arm():
    arms = {
        "dense": found(("a", 0.5), ("b", 0.4)),
        "lexical": found(("b", 9.0)),
        "words": found(("b", 9.0), ("a", 1.0)),
    }
    ranks = {entry.id: dict(entry.ranks) for entry in fuse(arms, 10.0, now=NOW, limit=5)}
    assert ranks == {"a": {"dense": 1, "words": 2}, "b": {"dense": 2, "lexical": 1, "words": 1}}


def test_an_item_found_by_several_chunks_counts_once():
    dense = [*found(("a", 0.5)), *found(("b", 0.4)), *found(("a", 0.3))]
    fused = fuse({"dense": dense}, 0.0, now=NOW, limit=5)
    assert [(entry.id, entry.ranks["dense"]) for entry in fused] == [("a", 1), ("b", 2)]


arm = st.dictionaries(st.sampled_from("abcdefghij"), st.floats(-1, 1), max_size=10)
lexical_arm = st.dictionaries(st.sampled_from("abcdefghijklm"), st.floats(0, 30), max_size=13)


weights = st.builds(FusionSettings, lexical_weight=st.floats(0, 1), word_weight=st.floats(0, 1))


@given(arm, lexical_arm, lexical_arm, st.floats(0, 40), st.integers(1, 20), weights)
def test_scores_are_in_the_unit_and_fall(dense, lexical, words, ceiling, limit, settings):
    fused = fuse(
        {
            "dense": found(*dense.items()),
            "lexical": found(*lexical.items()),
            "words": found(*words.items()),
        },
        ceiling,
        ceiling,
        now=NOW,
        limit=limit,
        settings=settings,
    )
    assert all(0 <= entry.score <= 1 for entry in fused)
    assert [entry.score for entry in fused] == sorted(
        (entry.score for entry in fused), reverse=True
    )
    assert len(fused) == min(limit, len(dense.keys() | lexical.keys() | words.keys()))
    assert len({entry.id for entry in fused}) == len(fused)


@given(arm, st.floats(0, 0.1))
def test_a_silent_lexical_arm_changes_nothing(dense, part):
    silent = dict.fromkeys(dense, part * 10)
    assert order(found(*dense.items()), found(*silent.items())) == order(found(*dense.items()), [])
    both = order(found(*dense.items()), [], found(*silent.items()))
    assert both == order(found(*dense.items()), [])


@given(arm, lexical_arm, st.floats(0.01, 0.5))
def test_a_better_cosine_never_makes_an_item_worse(dense, lexical, more):
    if not dense:
        return
    name = max(dense, key=dense.__getitem__)
    better = dense | {name: min(1.0, dense[name] + more)}

    def score(scores):
        fused = fuse(
            {"dense": found(*scores.items()), "lexical": found(*lexical.items())},
            10.0,
            now=NOW,
            limit=50,
        )
        return next(entry.score for entry in fused if entry.id == name)

    assert score(better) >= score(dense)
