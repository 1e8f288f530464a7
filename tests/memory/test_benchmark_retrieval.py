"""The retrieval benchmark's measures, table and demands."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.memory.retrieval import Quality, complaints, ndcg, recall, table

GOOD, BETTER = Quality(0.5, 0.4), Quality(0.6, 0.5)


def test_recall_counts_answers_among_the_first_ten():
    ranked = [str(number) for number in range(20)]
    assert recall(ranked, frozenset({"0", "9", "10"})) == pytest.approx(2 / 3)
    assert recall([], frozenset({"0"})) == 0


def test_ndcg_falls_with_the_place():
    assert ndcg(["a", "b"], frozenset({"a"})) == 1
    assert ndcg(["b", "a"], frozenset({"a"})) == pytest.approx(1 / math.log2(3))
    assert ndcg(["b", "c"], frozenset({"a"})) == 0
    assert (
        ndcg(["x", "a", "b"], frozenset({"a", "b"}))
        < ndcg(["a", "x", "b"], frozenset({"a", "b"}))
        < 1
    )


@given(st.permutations("abcdefghijklm"), st.sets(st.sampled_from("abcdefghijklm"), min_size=1))
def test_measures_are_in_the_unit(ranked, relevant):
    assert 0 <= recall(ranked, frozenset(relevant)) <= 1
    assert 0 <= ndcg(ranked, frozenset(relevant)) <= 1 + 1e-9


def test_fused_has_to_be_above_each_arm_over_all_and_nowhere_far_below():
    arms = {"dense": {"all": GOOD, "uk": BETTER}, "lexical": {"all": GOOD, "uk": GOOD}}
    assert (
        complaints({**arms, "fused": {"all": BETTER, "uk": BETTER}}, "fused", ("dense", "lexical"))
        == []
    )
    slightly = Quality(0.595, 0.495)
    assert (
        complaints(
            {**arms, "fused": {"all": BETTER, "uk": slightly}}, "fused", ("dense", "lexical")
        )
        == []
    )
    assert (
        len(
            complaints(
                {**arms, "fused": {"all": BETTER, "uk": GOOD}}, "fused", ("dense", "lexical")
            )
        )
        == 2
    )
    assert (
        len(
            complaints(
                {**arms, "fused": {"all": GOOD, "uk": BETTER}}, "fused", ("dense", "lexical")
            )
        )
        == 2
    )


def test_the_table_is_markdown_of_equal_columns():
    lines = table({"dense": {"all": GOOD, "uk": BETTER}}, {"all": 3, "uk": 2}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "0.600 / 0.500" in lines[-1]
