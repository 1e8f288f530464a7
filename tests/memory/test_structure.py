"""Evidence from neighbours, sessions, speakers and dates."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.memory.ports import Passage
from services.memory.fusion import DEFAULT, FusedItem
from services.memory.structure import asked_of, is_named, speaker_of, structured

KYIV = ZoneInfo("Europe/Kyiv")
NOON = datetime(2025, 5, 10, 9, tzinfo=UTC)
NOW = datetime(2025, 11, 30, 9, tzinfo=UTC)


def turn(name, text, minute=0, *, channel="channel a", cosine=0.1, kind="conversation"):
    return Passage(name, channel, kind, NOON + timedelta(minutes=minute), text, 1, cosine)


def scores(found, passages, question="Що там з поїздкою?"):
    """Returns the score of each item; `found` are those of fusion."""
    fused = [FusedItem(name, score) for name, score in found.items()]
    fused.sort(key=lambda item: -item.score)
    asked = asked_of(question, NOW, KYIV)
    return {item.id: item.score for item in structured(fused, passages, asked, DEFAULT)}


def test_an_item_that_stands_alone_keeps_its_score():
    alone = scores({"task": 0.4, "turn": 0.3}, [turn("turn", "Оксана: Їдемо потягом.")])
    assert alone == pytest.approx({"task": 0.4, "turn": 0.3})


def test_an_answer_gains_from_the_turn_that_asks():
    asks, other = "Дмитро: А коли ви їдете до Львова?", "Дмитро: Ми їдемо до Львова."
    answer = turn("answer", "Оксана: У суботу зранку.", 1)
    found = {"before": 0.5, "answer": 0.1}
    after_question = scores(found, [turn("before", asks), answer])["answer"]
    after_statement = scores(found, [turn("before", other), answer])["answer"]
    assert 0.1 < after_statement < after_question


def test_a_neighbour_that_no_arm_found_is_found():
    passages = [turn("asks", "Дмитро: Коли їдете?"), turn("new", "Оксана: У суботу.", 1)]
    found = scores({"asks": 0.5}, passages)
    assert 0 < found["new"] < 1


def test_strangers_add_nothing():
    far = [turn("a", "Дмитро: Коли їдете?"), turn("b", "Оксана: Так.", 60 * 24)]
    foreign = [turn("a", "Дмитро: Коли їдете?"), turn("b", "Оксана: Так.", channel="channel b")]
    for passages in (far, foreign):
        alone = scores({"a": 0.5, "b": 0.2}, passages)
        assert alone["b"] == pytest.approx(0.2)


def test_a_session_is_drawn_to_its_best_turn():
    passages = [turn(f"t{place}", f"Оксана: Так і є, {place}.", place) for place in range(12)]
    found = {passage.id: 0.1 for passage in passages} | {"t0": 0.6}
    far = scores(found, passages)["t11"]
    without = scores(found | {"t0": 0.1}, passages)["t11"]
    assert far > without


def test_who_is_named_gains():
    passages = [
        turn("hers", "Яринка: Взяла намет.", 0),
        turn("his", "Андрій: Взяв намет.", 0, channel="channel b"),
    ]
    found = {"hers": 0.4, "his": 0.4}
    assert scores(found, passages, "Що Яринці з речей випало?")["hers"] > 0.4
    assert scores(found, passages, "Що Яринці з речей випало?")["his"] == pytest.approx(0.4)


def test_a_turn_of_the_named_time_gains_and_documents_do_not():
    text = "Оксана: Були в горах."
    passages = [turn("may", text), turn("kb", "# May", channel="document 1", kind="kb")]
    found = {"may": 0.3, "kb": 0.3}
    in_may = scores(found, passages, "Що було у травні?")
    assert in_may["may"] > 0.3
    assert in_may["kb"] == pytest.approx(0.3)
    after = scores(found, passages, "Що було наприкінці квітня?")["may"]
    assert 0.3 < after < in_may["may"]
    assert scores(found, passages, "Що було в серпні?")["may"] == pytest.approx(0.3)


def test_a_fitting_date_counts_beside_little_evidence_and_not_beside_none():
    text = "Оксана: Були в горах."
    little = turn("little", text)
    other = turn("other", "Петро: Був у горах.", channel="channel b")
    other = replace(other, created_at=NOON.replace(month=8))
    found = scores({"little": 0.01, "other": 0.03}, [little, other], "Що було у травні?")
    assert found["little"] > found["other"]
    none = turn("none", text, cosine=-1.0)
    assert scores({"none": 0.0}, [none], "Що було у травні?") == {"none": 0.0}


def test_dates_of_a_conversation_of_long_ago_are_those_of_its_time():
    old = replace(turn("old", "Оксана: Були в горах."), created_at=NOON.replace(year=2021))
    asked = asked_of("Що було у травні?", NOW, KYIV, [old])
    assert [period.begin.year for period in asked.periods] == [2021]
    assert structured([FusedItem("old", 0.3)], [old], asked, DEFAULT)[0].score > 0.3


def test_when_prefers_turns_with_a_time():
    passages = [
        turn("dated", "Оксана: Переїзд у вівторок."),
        turn("plain", "Оксана: Переїзд буде.", channel="channel b"),
    ]
    found = scores({"dated": 0.3, "plain": 0.3}, passages, "Коли переїзд?")
    assert found["dated"] > found["plain"] == pytest.approx(0.3)


def test_a_turn_that_only_asks_falls():
    found = scores({"asks": 0.4}, [turn("asks", "Дмитро: А де ключ від майстерні?")])
    assert 0 < found["asks"] < 0.4


def test_of_equal_texts_the_best_one_is_shown():
    passages = [
        passage
        for n in range(20)
        for passage in (
            turn(f"q{n}", f"Дмитро: Завдання {n}?", 2 * n),
            turn(f"r{n}", "Бот: Готово.", 2 * n + 1),
        )
    ]
    found = scores({"q7": 0.6, "r0": 0.3, "q3": 0.2}, passages)
    assert [name for name in found if name.startswith("r")] == ["r7"]
    assert {"q7", "q3"} < found.keys()


def test_the_age_of_documents_says_nothing_of_a_conversations_dates():
    old = replace(turn("old", "Оксана: Були в горах."), created_at=NOON.replace(year=2021))
    newer = turn("kb", "# May", channel="document 1", kind="kb")
    asked = asked_of("Що було у травні?", NOW, KYIV, [old, newer])
    assert [period.begin.year for period in asked.periods] == [2021]


def test_in_a_living_conversation_yesterday_is_yesterday():
    recent = replace(turn("last", "Оксана: Так."), created_at=NOW - timedelta(days=5))
    asked = asked_of("Що казали вчора?", NOW, KYIV, [recent])
    assert [period.begin.day for period in asked.periods] == [29]


def test_sections_of_a_document_help_each_other():
    passages = [turn(f"s{n}", f"Text {n}.", channel="document 7", kind="kb") for n in range(3)]
    found = scores({"s0": 0.1, "s1": 0.6, "s2": 0.1}, passages)
    assert found["s0"] > 0.1
    assert found["s1"] > 0.6


@pytest.mark.parametrize(
    ("speaker", "inflected"),
    [
        ("Яринка", "Яринці"),
        ("Оля", "Олі"),
        ("Остап", "Остапові"),
        ("бабуся Ганна", "Ганни"),
        ("Галина Петрівна", "Галиною"),
        ("Ольга", "Ользі"),
        ("Андрій", "Андрієві"),
        ("Соломія", "Соломії"),
        ("Kateryna", "Катерині"),
        ("Маркус", "Marcus"),
        ("Sophie", "Sophie's"),
        ("Мар'яна", "Мар’яні"),
        ("оксана", "Оксани"),
    ],
)
def test_a_name_is_known_in_any_case_and_script(speaker, inflected):
    assert is_named(speaker, asked_of(inflected, NOW, KYIV).names)


@pytest.mark.parametrize(
    ("speaker", "other"),
    [("Марина", "Марічці"), ("Віра", "Вірменія"), ("Роман", "Романтичний")],
)
def test_another_word_is_not_the_name(speaker, other):
    assert not is_named(speaker, asked_of(other, NOW, KYIV).names)


@pytest.mark.parametrize(
    ("text", "speaker"),
    [
        ("Оксана: Завтра буду", "Оксана"),
        ("Галина Петрівна : так", "Галина Петрівна"),
        ("https://x.y: так", None),
        ("12:30: потяг", None),
        ("без імені", None),
        ("x" * 60 + ": так", None),
    ],
)
def test_the_speaker_stands_before_the_colon(text, speaker):
    assert speaker_of(text) == speaker


TEXTS = st.sampled_from(["Оксана: Так.", "Дмитро: Коли?", "Так", "Марко: О 18:30, у вівторок!"])


@given(
    st.lists(st.tuples(st.floats(0, 1), TEXTS, st.integers(0, 300), st.sampled_from("ab"))),
    st.text(max_size=60),
)
def test_scores_stay_in_their_bounds(rows, question):
    passages = sorted(
        (turn(f"t{n}", text, minute, channel=of) for n, (_, text, minute, of) in enumerate(rows)),
        key=lambda passage: (passage.group, passage.created_at),
    )
    given_scores = {f"t{n}": row[0] for n, row in enumerate(rows)}
    found = scores(given_scores, passages, question)
    texts = {passage.id: passage.text for passage in passages}
    assert sorted(texts[name] for name in found) == sorted(set(texts.values()))
    assert all(0 <= score <= 1 for score in found.values())
    if not any(given_scores.values()):
        assert not any(found.values())
