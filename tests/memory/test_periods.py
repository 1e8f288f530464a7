"""Dates in questions: which periods they name, and what asks for or holds a time."""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from time import process_time
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from contracts.memory.settings import QuerySettings
from services.memory.periods import MOST, Period, asks_when, holds_time, periods
from services.memory.time_words import LEXICON

SET = yaml.safe_load((Path(__file__).parent / "periods.yaml").read_text())
KYIV = ZoneInfo(SET["zone"])
CASES = [
    (question, group["now"], expected)
    for group in SET["groups"]
    for language in ("Ukrainian", "English")
    for question, expected in group[language].items()
]
MISSES = set(SET["misses"])
NOW = CASES[0][1]


def day(text, following):
    """Returns the first day of a year, month or day, or of the `following` one."""
    year, *rest = map(int, str(text).split("-"))
    if not rest:
        return date(year + following, 1, 1)
    if len(rest) == 1:
        index = 12 * year + rest[0] - 1 + following
        return date(index // 12, index % 12 + 1, 1)
    return date(year, *rest) + timedelta(days=following)


def expected_periods(expected):
    named = [] if expected is None else expected if isinstance(expected, list) else [expected]
    edges = [str(one).split("/") for one in named]
    return [
        Period(
            datetime.combine(day(edge[0], 0), datetime.min.time(), KYIV),
            datetime.combine(day(edge[-1], 1), datetime.min.time(), KYIV),
        )
        for edge in edges
    ]


@pytest.mark.parametrize(("question", "now", "expected"), CASES)
def test_every_question_is_read_as_the_set_says(question, now, expected):
    read = periods(question, now, KYIV) == expected_periods(expected)
    assert read is (question not in MISSES)


def test_the_document_shows_what_is_read_and_how_many_questions_there_are():
    document = (Path(__file__).parents[2] / "docs/retrieval.md").read_text()
    section = document.split("## Dates in questions")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+); (.+) \| (\S+) \| (\S+) \|$", section, re.MULTILINE)
    assert len(rows) >= 12
    for ukrainian, english, first, last in rows:
        shown = expected_periods(f"{first}/{last}")
        assert periods(f"Що було {ukrainian}?", NOW, KYIV) == shown
        assert periods(f"What happened {english}?", NOW, KYIV) == shown
    ukrainian, english = (
        [expected for group in SET["groups"] for expected in group[language].values()]
        for language in ("Ukrainian", "English")
    )
    sizes = f"{len(ukrainian)} Ukrainian and {len(english)} English questions"
    dateless = f"{(ukrainian + english).count(None)} of them without a period"
    assert f"{sizes}, {dateless}" in " ".join(section.split())


def test_the_set_is_large_enough_and_has_questions_without_dates():
    ukrainian, english = (
        [expected for group in SET["groups"] for expected in group[language].values()]
        for language in ("Ukrainian", "English")
    )
    assert len(ukrainian) >= 150
    assert len(english) >= 80
    assert (ukrainian + english).count(None) >= 0.15 * len(CASES)
    assert len(MISSES) <= 0.02 * len(CASES)


def test_days_are_those_of_the_zone():
    now = datetime(2026, 3, 18, 22, 30, tzinfo=UTC)
    (kyiv,), (new_york,) = (
        periods("What did we decide yesterday?", now, ZoneInfo(zone))
        for zone in ("Europe/Kyiv", "America/New_York")
    )
    assert kyiv.begin == datetime(2026, 3, 17, 22, tzinfo=UTC)
    assert new_york.begin == datetime(2026, 3, 17, 4, tzinfo=UTC)


def test_a_microdao_may_live_in_another_zone():
    settings = QuerySettings.model_validate({"time_zones": {"overseas": "America/New_York"}})
    assert settings.zone_of("overseas") == ZoneInfo("America/New_York")
    assert settings.zone_of("any other") == KYIV


@pytest.mark.parametrize("name", ["Kyiv", "+02:00", "../etc/passwd", "/etc/localtime", "Europe"])
def test_a_zone_that_nobody_knows_is_refused(name):
    for section in ({"time_zone": name}, {"time_zones": {"overseas": name}}):
        with pytest.raises(ValueError, match=f"invalid timezone: {re.escape(name)}"):
            QuerySettings.model_validate(section)


def test_a_day_on_which_the_clocks_change_has_its_hours():
    found = periods("29 березня 2026, 25 жовтня 2026 року", NOW, KYIV)
    lengths = [one.end.astimezone(UTC) - one.begin.astimezone(UTC) for one in found]
    assert lengths == [timedelta(hours=23), timedelta(hours=25)]


MONTHS = "січня лютого березня квітня травня червня липня серпня вересня жовтня листопада грудня"
DAYS = "понеділок вівторок середу четвер п'ятницю суботу неділю"
dates = st.dates(date(1970, 1, 1), date(2099, 12, 31))


@given(dates, st.dates(date(1971, 1, 1), date(2099, 12, 31)))
def test_a_date_is_the_same_in_every_spelling(named, asked):
    month, day = MONTHS.split()[named.month - 1], named.day
    english = f"{named:%B}"
    now = datetime(asked.year, asked.month, asked.day, 12, tzinfo=KYIV)
    for spelled in (
        f"{named:%Y-%m-%d}", f"{named:%d.%m.%Y}", f"{day}/{named.month}/{named.year}",
        f"{day} {month} {named.year} року", f"{day}-го {month}, {named.year}",
        f"{english} {day}, {named.year}", f"{day}th of {english} {named.year}",
    ):  # fmt: skip
        assert periods(f"хто там був {spelled}?", now, KYIV) == expected_periods(named.isoformat())


@given(dates, st.dates(date(1980, 1, 1), date(2099, 12, 30)))
def test_a_date_without_year_and_a_weekday_are_the_latest_until_today(named, asked):
    now = datetime(asked.year, asked.month, asked.day, 12, tzinfo=KYIV)
    months = MONTHS.split()
    (period,) = periods(f"хто був там {named.day} {months[named.month - 1]}?", now, KYIV)
    begin = period.begin.date()
    assert (begin.month, begin.day) == (named.month, named.day)
    assert timedelta() <= asked - begin < timedelta(days=366 * 8 + 1)
    assert named.day == 29 or asked - begin < timedelta(days=366)
    (period,) = periods(f"хто був там у {DAYS.split()[named.weekday()]}?", now, KYIV)
    assert period.begin.weekday() == named.weekday()
    assert timedelta() <= asked - period.begin.date() < timedelta(days=7)


@pytest.mark.parametrize(
    "now", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
)
def test_at_the_calendars_edges_nothing_is_read(now):
    for zone in ("America/New_York", "Pacific/Apia"):
        assert periods("вчора, two weeks ago, через 999 тижнів", now, ZoneInfo(zone)) == []


words = st.sampled_from(sorted(LEXICON)) | st.sampled_from(
    ["2024", "31", "3rd", "15.06.2025", "29.02", "2025-06", "999", "0", "-", ",", "у", "/", "."]
)
nows = st.integers(0, 4_000_000_000).map(lambda stamp: datetime.fromtimestamp(stamp, UTC))


@given(st.lists(words, max_size=30).map(" ".join) | st.text(max_size=200), nows)
def test_whatever_the_text_periods_are_few_and_begin_before_they_end(text, now):
    found = periods(text, now, KYIV)
    assert len(found) <= MOST
    assert all(period.begin < period.end for period in found)
    asks_when(text)
    holds_time(text)


@pytest.mark.parametrize(
    "piece",
    [
        *("3 липня ", "на ", "у травні і ", "1.1.", "1/", "2024-", "двадцять ", "коли ", "When "),
        *("-", "п'", "з 3 по ", "the end of ", "last ", ". коли", "a", "Коли а, ", "о ", "good "),
        *("п\u0301", "1", " "),
    ],
)
def test_a_long_text_of_one_piece_takes_time_in_proportion(piece):
    text = piece * (80_000 // len(piece))
    started = process_time()
    periods(text, NOW, KYIV)
    asks_when(text)
    holds_time(text)
    assert process_time() - started < 5  # 0.3 s; where time grew with the square, minutes


@pytest.mark.parametrize("question", SET["asks_when"])
def test_questions_for_a_time(question):
    assert asks_when(question)


@pytest.mark.parametrize("question", SET["asks_something_else"])
def test_questions_for_something_else(question):
    assert not asks_when(question)


@pytest.mark.parametrize("text", SET["holds_time"])
def test_texts_with_a_time(text):
    assert holds_time(text)


@pytest.mark.parametrize("text", SET["holds_no_time"])
def test_texts_without_a_time(text):
    assert not holds_time(text)
