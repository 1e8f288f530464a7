"""The gold set has the properties that docs/retrieval.md states."""

from collections import Counter

import pytest

from benchmarks.memory.bench import word_rankings
from benchmarks.memory.gold import generate
from benchmarks.memory.gold.dataset import FOLDER, content_words, load_gold, slices_of, stem
from benchmarks.memory.retrieval import WORD_BM25_AT_MOST, measured


@pytest.fixture(scope="module")
def gold():
    return load_gold()


def test_the_set_is_large_enough(gold):
    answers = {name for query in gold.queries for name in query.relevant}
    assert len(gold.queries) >= 200
    assert len(gold.items) - len(answers) >= 2_000


def test_every_slice_is_large_enough(gold):
    counted = Counter(name for query in gold.queries for name in query.slices)
    assert counted["no-shared-word"] >= len(gold.queries) / 3
    assert counted["cross"] >= len(gold.queries) / 4
    assert min(counted[name] for name in ("uk", "en", "inflected")) >= 50
    same_language = [
        query
        for query in gold.queries
        if "cross" not in query.slices and "no-shared-word" in query.slices
    ]
    assert len(same_language) >= 50


def test_word_search_alone_does_not_solve_it(gold):
    assert measured(gold.queries, word_rankings(gold))["all"].recall <= WORD_BM25_AT_MOST


def test_every_answer_exists_and_nothing_is_there_twice(gold):
    ids = Counter(item.id for item in gold.items)
    assert max(ids.values()) == 1
    assert all(query.relevant <= ids.keys() for query in gold.queries)
    assert max(Counter(query.text for query in gold.queries).values()) == 1
    assert max(Counter((item.kind, item.text) for item in gold.items).values()) == 1


def test_all_kinds_and_both_languages_are_there(gold):
    assert {item.kind for item in gold.items} == {"conversation", "kb", "task", "dao-event"}
    assert min(Counter(item.lang for item in gold.items).values()) >= 800


@pytest.mark.parametrize(
    ("name", "lines"), [("memory", generate.gold_lines), ("second", generate.second_lines)]
)
def test_the_committed_file_is_what_the_sources_give(name, lines):
    committed = load_gold(name)
    made = lines()
    assert [line["id"] for line in made] == [
        *(item.id for item in committed.items),
        *(query.id for query in committed.queries),
    ]
    assert [line["text"] for line in made if line["type"] == "query"] == [
        query.text for query in committed.queries
    ]
    assert (FOLDER / f"{name}.jsonl").stat().st_size > 100_000


def test_every_slot_is_filled(gold):
    for item in (*gold.items, *load_gold("second").items):
        assert "{" not in item.text, item.id


def test_slices_are_chosen_by_the_words_of_query_and_answer(gold):
    item = next(item for item in gold.items if item.id == "uk-bees")
    assert slices_of("Куди подіти вулики?", "uk", [item]) == {"uk"}
    assert slices_of("Що роблять з вуликами на даху?", "uk", [item]) == {"uk", "inflected"}
    assert slices_of("Хто займається переселенням бджіл?", "uk", [item]) == {"uk", "no-shared-word"}
    assert slices_of("Who moves the beehives?", "en", [item]) == {"cross", "no-shared-word"}


def test_stems_join_forms_and_keep_numbers_apart():
    assert stem("вулики") == stem("вуликів")[: len(stem("вулики"))]
    assert stem("2041") != stem("2042")
    assert content_words("Що ми маємо зробити з 253 вольтами?") == {
        "маємо",
        "зробити",
        "253",
        "вольтами",
    }
