"""Reads the dates in a question, Ukrainian and English, for recall.

A text becomes words, each word a letter for its category (`services/memory/time_words.py`), and one
regular expression over these letters finds the expressions of time. Expressions side by side ("у
травні", "торік") are joined, then resolved to days. Days are counted as `date.toordinal` does, and
spans of them end exclusively.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from services.memory.time_words import Value, Word, asks_when, holds_time, read_words

__all__ = ["Period", "asks_when", "holds_time", "periods"]

MOST = 4
"""Periods that are returned of one text; of further expressions none is read."""
YEARS = range(1970, 2101)
"""Years that are believed; "before May" begins with the first."""

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Period:
    """A time in the asker's zone, from `begin` up to and without `end`."""

    begin: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Named:
    """What an expression says of a time; the parts that it does not name are None.

    `span`: days that are known from today alone (a year, last week). `run`: months without a year,
    as first month and their number. `days`: first and last day of the month. `weekday`: days from
    Monday, and their number. `relative`: last, this or next one of these. `part`: of all this the
    one with this index, of so many; the number 0 stands for weeks.
    """

    span: Span | None = None
    run: Value | None = None
    days: Span | None = None
    weekday: Value | None = None
    relative: int | None = None
    part: Value | None = None

    def joined(self, other: Named) -> Named | None:
        """Returns both as one expression, or None where both name the same part."""
        given = {name: getattr(other, name) for name in self.__slots__}
        given = {name: value for name, value in given.items() if value is not None}
        if any(getattr(self, name) is not None for name in given):
            return None
        return replace(self, **given)


@dataclass(slots=True)
class Expression:
    """An expression of time, and where in the letters it begins and ends."""

    named: Named
    begin: int
    end: int


def periods(text: str, now: datetime, zone: ZoneInfo) -> list[Period]:
    """Returns the periods that `text` names, in its order, at most `MOST`.

    A month or a day without its year is the latest one that is not after `now`.
    """
    words = read_words(text)
    letters = "".join(word.category for word in words)
    local = now.astimezone(zone)
    spans = _spans(_expressions(letters, words, local), letters, local.date().toordinal())
    found = {
        span: Period(*(datetime.combine(date.fromordinal(day), time(), zone) for day in span))
        for span in spans
        if EARLIEST <= span[0] < span[1] <= LATEST
    }
    return list(found.values())[:MOST]


# From letters to expressions.

NUMBER = "[cng]{1,2}"
DAY = "(?:c?-?o|n)"
ATOM = re.compile(
    "(?P<date>D)|(?P<short>e)|(?P<relative_day>U[ba]R|R)"
    f"|(?P<ago>(?:(?:{NUMBER}(?:&hv)?|f|v)[ih]{{0,3}})?[UYO](?:&hv|h?(?:{NUMBER}|f))?A)"
    f"|(?P<ahead>G(?:{NUMBER})?[UY](?!a))"
    "|(?P<week_of>[okr]U(?=[ih]{0,2}[MN]))"
    f"|(?P<rolling>[rk](?:{NUMBER}|f|v)[ih]{{0,2}}[UY]|k[UY])"
    "|(?P<unit>r[UY]|[jA]U|Ubr)|(?P<night>rL)"
    f"|(?P<day>(?:{DAY}h?[Td-]h?|(?<=B){DAY}&)?{DAY}[ih]{{0,2}}(?P<month>[MN]))"
    f"|(?P<month_day>Nh?{DAY}(?:[Td-]h?{DAY}(?![ih]{{0,2}}[MN]))?)"
    rf"|(?P<left>{DAY}(?=&{DAY}[ih]{{0,2}}[MN]))|(?P<number>{DAY}C|(?<=ih)o(?=[.,]|$))"
    "|(?P<run>[rk]?[MNS]|[on]Y|Q)|(?P<weekday>[rk]?W)|(?P<year>yY?|q)"
    "|(?P<half>[ok]v)|(?P<part>(?:(?<=[iFdl])|(?<=[iFdl]h))p|p(?=[MSYqr])|P-?)(?P<whole>[ih]{0,2}[UY])?"
)
GLUE = re.compile("[ihl,]{0,3}")


def _expressions(letters: str, words: list[Word], now: datetime) -> list[Expression]:
    found: list[Expression] = []
    for match in ATOM.finditer(letters):
        named = _read(match, words[match.start() : match.end()], now)
        if named is None:
            continue
        if found and GLUE.fullmatch(letters, found[-1].end, match.start()):
            joined = found[-1].named.joined(named)
            if joined is not None:
                found[-1].named, found[-1].end = joined, match.end()
                continue
        if len(found) == 2 * MOST:
            break
        found.append(Expression(named, match.start(), match.end()))
    return found


def _read(  # noqa: C901, PLR0912
    match: re.Match[str], words: list[Word], now: datetime
) -> Named | None:
    kind = match.lastgroup if match.lastgroup not in {"month", "whole"} else ""
    kind = kind or ("day" if match["day"] else "part")
    today = now.date().toordinal()
    first, last = words[0], words[-1]
    value, size = first.value, int(last.value[0])
    relative = int(value[0]) if first.category == "r" else -1 if first.category == "k" else None
    match kind:
        case "date":
            return Named(span=(int(value[0]), int(value[1])))
        case "short":
            return Named(run=(value[0], 1), days=(int(value[1]), int(value[1])))
        case "relative_day":
            day = today + size + {"b": -1, "a": 1}.get(match[0][1:2], 0)
            return Named(span=(day, day + 1))
        case "ago":
            return Named(span=_ago(match[0], words, now))
        case "ahead":
            unit = int(last.value[0])
            return Named(span=_unit(_moved(today, _number(words)[0], unit), unit))
        case "week_of":
            if size != 7 or (first.category == "r" and first.text != "last"):
                return Named(span=_unit(today, size, relative or 0)) if relative else None
            return Named(part=(value[0] - 1 if first.category == "o" else -1, 0))
        case "rolling":
            if relative == 1:
                return Named(span=(today + 1, _moved(today, _number(words)[1], size) + 1))
            return Named(span=(_moved(today, -_number(words)[1], size), today + 1))
        case "unit":
            if match[0] == "Ubr":
                return Named(span=_unit(today, int(value[0]), -2))
            if size == 1 or (relative is None and size != 7):
                return None  # "the next day" tells a story, "that day" points into one
            return Named(span=_unit(today, size, -1 if relative is None else relative))
        case "night":
            day = today + min(relative or 0, 0)
            return Named(span=(day, day + 1))
        case "day" | "month_day" | "left" | "number":
            return _days(match[0], words)
        case "run":
            if last.category == "Y":
                months = -size
                index = int(value[0])
                if months not in {3, 6} or index > 12 // months:
                    return None
                return Named(run=(months * (index - 1) + 1, months))
            return Named(run=last.value, relative=relative)
        case "weekday":
            return Named(weekday=last.value, relative=relative)
        case "year":
            year = int(value[0]) + (now.year if first.category == "q" else 0)
            return Named(span=(_month(12 * year), _month(12 * year + 12)))
        case "half":
            half = int(value[0]) - 1 if first.category == "o" else 1
            return Named(part=(half, 2)) if half < 2 else None
    if match["whole"] is None:
        return Named(part=value)
    if size == 1:
        return None
    spans = (_part(_unit(today, size, offset), value) for offset in (0, -1))
    return Named(span=next(span for span in spans if span[0] <= today))


def _number(words: list[Word]) -> Value:
    """Returns the lowest and the highest number of units that the words mean."""
    for word in words:
        if word.category == "f":
            return word.value
    total = sum(word.value[0] for word in words if word.category in "cngv")
    letters = {word.category for word in words}
    if "&" in letters and not letters & set("cng"):
        total += 1  # "a year and a half"
    return (total or 1, total or 1)


def _days(letters: str, words: list[Word]) -> Named | None:
    """Reads days of a month, two of them as a range, and the month where it stands beside them."""
    days = [0]
    for letter, word in zip(letters, words, strict=True):
        if letter in "Td&-" and not (letter == "-" and days[-1] == 20):
            days.append(0)
        elif letter in "con":
            days[-1] += int(word.value[0])
    if letters == "o" and not words[0].text[0].isdigit():
        return None
    if not 0 < days[0] <= days[-1] <= 31 or (len(days) == 2 and days[0] == days[1]):
        return None
    run = next((word.value for word in words if word.category in "MN"), None)
    return Named(run=run, days=(days[0], days[-1]))


# From expressions to days.

LEAD = re.compile("([sabdBF])[Fihl]{0,3}$")
BETWEEN = re.compile("[ihl]{0,2}[Td&-][ihl]{0,2}")
TO_NOW = re.compile("[ihdT]{0,2}E")
FINER = {-12: -1, -6: -1, -3: -1, -1: 7, 7: 1, 1: 1}
"""The unit in which half of a unit ago is meant."""


def _spans(  # noqa: C901
    found: list[Expression], letters: str, today: int
) -> Iterator[Span]:
    skip = False
    for index, one in enumerate(found):
        if skip:
            skip = False
            continue
        following = found[index + 1] if index + 1 < len(found) else None
        begin = LEAD.search(letters, max(0, one.begin - 4), one.begin)
        lead = begin[1] if begin else ""
        if following and (gap := BETWEEN.fullmatch(letters, one.end, following.begin)):
            if one.named.days and not (one.named.run or one.named.span):
                one.named = replace(following.named, days=one.named.days)
            if "&" not in gap[0] or lead == "B":
                span = _range(one.named, following.named, today)
                if span is not None:
                    skip = True
                    yield span
                    continue
        span = _resolve(one.named, today)
        if span is None:
            continue
        since = lead == "s" or (lead == "F" and letters[one.begin] == "p")
        if (since or TO_NOW.match(letters, one.end)) and span[0] <= today:
            yield span[0], today + 1
        elif lead == "a" and span[1] <= today:
            yield span[1], today + 1
        elif lead in {"b", "d"} and span[0] <= today and one.named.weekday is None:
            yield EARLIEST, span[0]
        else:
            yield span


def _range(left: Named, right: Named, today: int) -> Span | None:
    """Returns the span from one to the other; a year that only one of them has holds for both."""
    end = _resolve(right, today)
    begin = end and _resolve(left, end[0] if left.span is None else today)
    if begin and end and left.span and right.span is None and end[0] > begin[1]:
        end = _resolve(replace(right, relative=1), begin[0])
    return (begin[0], end[1]) if begin and end and begin[0] < end[0] else None


def _resolve(named: Named, today: int) -> Span | None:
    span = named.span
    if named.run or named.days or named.weekday:
        span = _chosen(named, today) or span
    return _part(span, named.part) if span and named.part else span


def _chosen(named: Named, today: int) -> Span | None:
    """Returns which of the occurrences is meant."""
    all_of_them = list(_occurrences(named, today))
    meant: Iterator[Span]
    if named.span is not None:
        begin, end = named.span
        meant = (span for span in all_of_them if span[0] < end and span[1] > begin)
    elif named.relative is None:
        meant = (span for span in all_of_them if span[0] <= today)
    elif named.relative > 0:
        meant = (span for span in reversed(all_of_them) if span[0] > today)
    elif named.relative < 0:
        past = [span for span in all_of_them if span[1] <= today]
        meant = iter(past[-named.relative - 1 :])
    else:
        unit = -12 if named.run else 7
        begin, end = _unit(today, unit)
        near = [span for span in all_of_them if begin <= span[0] < end]
        meant = iter([*(span for span in all_of_them if span[0] <= today < span[1]), *near])
    return next(meant, None)


def _occurrences(named: Named, today: int) -> Iterator[Span]:
    """Yields the latest first: around today, or within the years of the span."""
    if not (named.run or named.days):
        first, length = map(int, named.weekday or (0, 1))
        begin, end = named.span or (today, today)
        monday = _unit(begin, 7)[0] + first
        if end - begin <= 7:
            yield from ((monday + 7 * n, monday + 7 * n + length) for n in (1, 0, -1, -2))
        return
    this = date.fromordinal(today).year
    newest, oldest = this + 1, this - 8  # as long as there may be no 29 February
    if named.span is not None:
        oldest, newest = (date.fromordinal(day).year for day in (named.span[0], named.span[1] - 1))
    count = int(named.run[1]) if named.run else 1
    for year in range(newest, oldest - 1, -1):
        for month in [int(named.run[0])] if named.run else range(12, 0, -1):
            index = 12 * year + month - 1 - (12 if month + count > 13 else 0)
            begin, end = _month(index), _month(index + count)
            if named.days is None:
                yield begin, end
            elif named.days[1] <= end - begin:
                yield begin + named.days[0] - 1, begin + named.days[1]


def _part(span: Span, part: Value) -> Span:
    """Returns one of several parts of a span: of months if it has enough, else of days."""
    begin, end = span
    index, count = map(int, part)
    if count == 0:
        return (
            (begin + 7 * index, min(begin + 7 * index + 7, end)) if index >= 0 else (end - 7, end)
        )
    first, after = date.fromordinal(begin), date.fromordinal(end)
    months = 12 * (after.year - first.year) + after.month - first.month
    if first.day == after.day == 1 and months >= count:
        index_of = 12 * first.year + first.month - 1
        edges = [_month(index_of + months // count * n) for n in range(count)]
    else:
        length = 10 if count == 3 and 28 <= end - begin <= 31 else max(1, (end - begin) // count)
        edges = [begin + length * n for n in range(count)]
    edges.append(end)
    return (edges[index], edges[index + 1]) if edges[index] < edges[index + 1] <= end else span


def _ago(letters: str, words: list[Word], now: datetime) -> Span:
    """Returns the unit of the calendar that lies so many units back, of "a few" all of them."""
    unit = next(word for word in words if word.category in "UYO")
    fewest, most = _number(words)
    today = now.date().toordinal()
    if "O" in letters:
        day = (now - timedelta(hours=most * unit.value[0])).date().toordinal()
        return day, day + 1
    size = int(unit.value[0])
    of = FINER[size] if size == -6 or most % 1 else size
    return _unit(_moved(today, -most, size), of)[0], _unit(_moved(today, -fewest, size), of)[1]


def _moved(day: int, number: float, size: int) -> int:
    """Returns the day so many units after the given one; a month's last day stays the last."""
    if size > 0:
        return max(1, day + int(number * size))
    months = number * -size
    at = date.fromordinal(day)
    index = 12 * at.year + at.month - 1 + int(months)
    begin = _month(index)
    within = min(at.day, _month(index + 1) - begin) - 1 + int(months % 1 * 30)
    return max(1, begin + within)


def _unit(day: int, size: int, offset: int = 0) -> Span:
    """Returns the day, week, month, quarter or year around a day, or one before or after it."""
    if size > 0:
        begin = ((day - 1) // size + offset) * size + 1
        return begin, begin + size
    at = date.fromordinal(day)
    index = ((12 * at.year + at.month - 1) // -size + offset) * -size
    return _month(index), _month(index - size)


def _month(index: int) -> int:
    """Returns the first day of a month, counted from the year 0, within the calendar's bounds."""
    year, month = divmod(max(12, min(index, 12 * 9_999)), 12)
    return date(year, month + 1, 1).toordinal()


EARLIEST, LATEST = _month(12 * YEARS.start), _month(12 * YEARS.stop)
