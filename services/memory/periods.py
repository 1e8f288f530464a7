"""Reads the dates in a question, Ukrainian and English, for recall.

A text becomes letters (`services/memory/time_words.py`), and one regular expression over them finds
the expressions of time. Expressions side by side ("у травні", "торік") are joined, then resolved to
days. Days are counted as `date.toordinal` does, and spans of them end exclusively.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache
from itertools import islice
from zoneinfo import ZoneInfo

from services.memory.time_words import Pair, asks_when, holds_time, read_words

__all__ = ["Period", "asks_when", "holds_time", "periods"]

MOST = 4
"""Periods that are returned of one text; expressions after the first sixteen are not read."""

Named = dict[str, Pair]
"""What an expression says of a time:

- `span`: days that are known from today alone (a year, last week)
- `run`: months of any year, as the first one and their number; `days`: first and last of the month
- `weekday`: days from Monday, and their number; `unit`: the week, month or year, by its size
- `relative`: the last (-1) of these, the one before it (-2), the next (1), the next to end (2)
- `part`: of all this the one with this index, of so many; of 0 means weeks
"""


@dataclass(frozen=True, slots=True)
class Period:
    """A time in the asker's zone, from `begin` up to and without `end`."""

    begin: datetime
    end: datetime


def periods(text: str, now: datetime, zone: ZoneInfo) -> list[Period]:
    """Returns the periods that `text` names, in its order, at most `MOST`.

    A month or a day without its year is the latest one that is not after `now`. Nothing is read
    where `now` is not between 1971 and 2099.
    """
    if not 1970 < now.year < 2100:
        return []  # a caller's `until` may be at the calendar's edge
    letters, values = read_words(text)
    today = now.astimezone(zone).date().toordinal()
    spans = [_span(one, letters, today) for one in _expressions(letters, values, today)]
    found = [
        Period(*(datetime.combine(date.fromordinal(day), time(), zone) for day in span))
        for span in dict.fromkeys(spans)
        if span and EARLIEST <= span[0] < span[1] <= LATEST
    ]
    return found[:MOST]


# From letters to what they name.

NUMBER, DAY = "[cng]{1,2}", "(?:c?[ot]|n)"
ATOM = re.compile(
    "(?P<date>(?<!V)(?<!V.)(?:D|(?<!l)e(?!\\$)))|(?P<relative_day>J[ba]R|R)"
    f"|(?P<away>(?:(?:{NUMBER}(?:&h?v)?|f|v)[ih]{{0,3}})?[JUYKO](?:&h?v|h?(?:{NUMBER}|f))?A"
    f"|G(?:{NUMBER}|v)?[JUY](?!a)"
    f"|[rk](?:{NUMBER}|f|v)[ih]{{0,2}}[JUYO]|k[JUYKO](?!i?M))"
    "|(?P<week_of>(?:[ok]U|rUi(?=N))(?=[ih]{0,2}[MN]))"
    "|(?P<before_last>[UYK]br)|(?P<unit>r[UYK])|(?P<that_week>[jA]U)|(?P<night>rL)"
    f"|(?P<days>(?<!V)(?:{DAY}h?[Td&-]h?)?(?:n|c?[ot][ih]{{0,2}})[MN]"
    f"|N[.h]?{DAY}(?:[Td-]h?{DAY}(?![ih]{{0,2}}[MN]))?|Mt|{DAY}C|(?<=ih)t(?=[.,]|$))"
    "|(?P<quarter>[on]K)|(?P<run>(?<!X)(?<!Vn)[rk]?[MNSQ])|(?P<weekday>Wbr|(?<!X)[rk]?W(?!h?[ab]))"
    "|(?P<year>yY?)|(?P<this_year>q)|(?P<half>[ok]v)|(?P<ten_days>[ok]z)"
    "|(?P<part>(?:(?<=[iFdlsab])p|(?<=[iFdlsab]h)p|p(?=[MSYqr])|P-?)(?:[ih]{0,2}[UYK])?)"
)
"""One expression, named after its reader in `READERS`. Repetitions are bounded."""
GLUE, RANGE = re.compile("[ihl,]{0,3}"), re.compile("[ihl]{0,2}[Td&-][ihl]{0,2}")
LEAD, TO_NOW = re.compile("((?<![JUYW])[bd]|[saBF])[Fihl]{0,3}$"), re.compile("[ihdT]{0,2}E")
FINER = {-12: (-1, 12), -6: (-1, 6), -3: (-1, 3), -1: (7, 4), 7: (1, 7), 1: (1, 1)}
"""The size of the unit that half of a unit is counted in, and how many of them the whole has."""


@dataclass(slots=True)
class Expression:
    """What stands together in a text: one time, or the first and the last of a range."""

    lead: str
    parts: list[Named]
    end: int


def _expressions(letters: str, values: list[Pair], today: int) -> list[Expression]:
    found = [Expression("", [{}], -1)]
    for match in islice(ATOM.finditer(letters), 4 * MOST):
        named = READERS[match.lastgroup or ""](match[0], values[match.start() : match.end()], today)
        last = found[-1]
        gap = "." if last.end < 0 else letters[last.end : match.start()]
        if GLUE.fullmatch(gap) and not last.parts[-1].keys() & named.keys():
            last.parts[-1] |= named
        elif RANGE.fullmatch(gap) and len(last.parts) == 1 and ("&" not in gap or last.lead == "B"):
            last.parts.append(named)
        else:
            lead = LEAD.search(letters, max(0, match.start() - 4), match.start())
            found.append(Expression(lead[1] if lead else "", [named], 0))
        found[-1].end = match.end()
    return found


def _away(letters: str, values: list[Pair], today: int) -> Named:
    """Reads "two weeks ago", "через місяць", "the last three days", with a few or half of them."""
    numbered = [*zip(letters, values, strict=True)]
    size = next(value[0] for letter, value in numbered if letter in "JUYKO")
    counts = [
        sum(value[side] for letter, value in numbered if letter in "cngfv") for side in (0, 1)
    ]
    half = "v" in letters
    if not counts[1] and (not half or "&" in letters):
        counts = [1, 1]  # "a week", "a year and a half"
    if (half and size < 24) or size == -6:
        size, whole = FINER[size]
        counts = [count * whole + half * whole // 2 for count in counts]
    if "O" in letters:
        size, counts = 1, [count // size for count in counts]
    after = letters[0] == "G" or (letters[0] == "r" and values[0][0] > 0)
    ends = [_moved(today, count if after else -count, size) for count in counts]
    if letters[0] in "rk":
        return {"span": (today + 1, ends[1] + 1) if after else (ends[1], today + 1)}
    units = sorted(_unit(end, size) for end in ends)
    return {"span": (units[0][0], units[1][1])}


def _days(letters: str, values: list[Pair], _: int) -> Named:
    days = [
        sum(value[0] for value in values[slice(*found.span())])
        for found in re.finditer(DAY, letters)
    ]
    months = [value for letter, value in zip(letters, values, strict=True) if letter in "MN"]
    return {"days": (days[0], days[-1])} | ({"run": months[0]} if months else {})


def _relative(letters: str, values: list[Pair], around: Pair) -> Named:
    if letters[0] not in "rk":
        return {"relative": (-2, 0)} if letters.endswith("br") else {}
    return {"relative": values[0]} if values[0][0] else {"span": around}


READERS: dict[str, Callable[[str, list[Pair], int], Named]] = {
    "date": lambda _, values, __: (
        {"run": (values[0][1] // 100, 1)}
        | ({"days": (values[0][1] % 100,) * 2} if values[0][1] % 100 else {})
        | ({"span": _year(values[0][0])} if values[0][0] else {})
    ),
    "relative_day": lambda letters, values, today: {
        "span": _unit(today + values[-1][0] + {"b": -1, "a": 1}.get(letters[1:2], 0), 1)
    },
    "away": _away,
    "week_of": lambda letters, values, _: {"part": (values[0][0] - (letters[0] == "o"), 0)},
    "before_last": lambda _, values, today: {"span": _unit(today, values[0][0], -2)},
    "unit": lambda _, values, today: {"span": _unit(today, values[1][0], values[0][0])},
    "that_week": lambda _, values, today: {"span": _unit(today, values[1][0], -1)},
    "night": lambda _, values, today: {"span": _unit(today + min(values[0][0], 0), 1)},
    "days": _days,
    "quarter": lambda _, values, __: {
        "run": (-values[1][0] * (values[0][0] - 1) + 1, -values[1][0])
    },
    "run": lambda letters, values, today: (
        {"run": values[-1]} | _relative(letters, values, _unit(today, -12))
    ),
    "weekday": lambda letters, values, today: (
        {"weekday": values[letters.index("W")]} | _relative(letters, values, _unit(today, 7))
    ),
    "year": lambda _, values, __: {"span": _year(values[0][0])},
    "this_year": lambda _, values, today: {"span": _unit(today, -12, values[0][0])},
    "half": lambda letters, values, _: {"part": (min(values[0][0], 2) - (letters[0] == "o"), 2)},
    "ten_days": lambda letters, values, _: {
        "part": (min(values[0][0], 3) - (letters[0] == "o"), 3)
    },
    "part": lambda letters, values, _: (
        {"part": values[0]} | ({"unit": values[-1]} if letters[-1] in "UYK" else {})
    ),
}


# From what is named to days.


def _span(one: Expression, letters: str, today: int) -> Pair | None:
    if len(one.parts) == 2:
        return _range(one.parts, today)
    (named,) = one.parts
    ahead = one.lead == "d" and "part" in named  # "until the end of June"
    span = _resolve({"relative": (2, 0)} | named, today) if ahead else None
    span = span or _resolve(named, today)
    if span is None or span[0] > today:
        return span
    if one.lead == "s" or (one.lead == "F" and "part" in named) or TO_NOW.match(letters, one.end):
        return span[0], today + 1
    if one.lead == "a" and span[1] <= today:
        return span[1], today + 1
    if one.lead in {"b", "d"} and span[1] <= today and "weekday" not in named:
        return EARLIEST, span[0]
    return span


def _range(parts: list[Named], today: int) -> Pair | None:
    """Returns the span of both ends; a year that only one of them has holds for both."""
    first, last = parts
    if "span" in first and "span" not in last:
        begin = _resolve(first, today)
        end = begin and _resolve(last | {"relative": (1, 0)}, begin[0])
    else:
        end = _resolve(last, today)
        begin = end and _resolve(first, today if "span" in first else end[0])
    return (begin[0], end[1]) if begin and end else None


def _resolve(named: Named, today: int) -> Pair | None:
    """Returns which of the times that fit is meant."""
    span, relative = named.get("span"), named.get("relative", (0, 0))[0]
    fit = [
        one
        for one in _occurrences(named, today)
        if span is None or (one[0] < span[1] and one[1] > span[0])
    ]
    past = [one for one in fit if one[relative < 0] <= today]
    if relative > 0:
        return next((one for one in fit if one[relative - 1] > today), None)
    if span and (not past or span[1] <= today):
        return fit[0] if fit else span
    return [None, None, *past][relative or -1]  # None where fewer are past than asked for


def _occurrences(named: Named, today: int) -> list[Pair]:
    """Returns the times of that name around today or in the given span, the earliest first."""
    begin, end = named.get("span", (today, today))
    found = [(begin, end)] if "span" in named else []
    if "run" in named or "days" in named:
        month, count = named.get("run", (0, 1))
        back = 9 if month and "span" not in named else 1  # 29 February may be eight years ago
        years = range(date.fromordinal(begin).year - back, date.fromordinal(end).year + 2)
        indexes = [12 * y + m - 1 for y in years for m in ([month] if month else range(1, 13))]
        found = [(_month(index), _month(index + count)) for index in indexes]
        if "days" in named:
            first, last = named["days"]
            found = [(one + first - 1, one + last) for one, after in found if last <= after - one]
    elif "weekday" in named and end - begin <= 7:
        first, count = named["weekday"]
        mondays = [_unit(begin, 7, week)[0] for week in range(-4, 2)]
        found = [(monday + first, monday + first + count) for monday in mondays]
    elif "unit" in named:
        found = [_unit(today, named["unit"][0], offset) for offset in (-1, 0)]
    return [_part(one, named["part"]) for one in found] if "part" in named else found


def _part(span: Pair, part: Pair) -> Pair:
    """Returns one of several parts of a span, of whole months if it is longer than one."""
    (begin, end), (index, count) = span, part
    if count == 0:
        return (begin + 7 * index, begin + 7 * index + 7) if index >= 0 else (end - 7, end)
    length = 10 if count == 3 and 28 <= end - begin <= 31 else (end - begin) / count
    edges = [*(begin + int(length * n) for n in range(count)), end]
    if end - begin > 31:
        edges = [*(_unit(edge + 15, -1)[0] for edge in edges[:-1]), end]
    index %= count  # the last part is also -1
    return (edges[index], edges[index + 1]) if end - begin >= count else span


def _moved(day: int, number: int, size: int) -> int:
    """Returns the day so many units after the given one; a month's last day stays the last."""
    if size > 0:
        return max(1, day + number * size)
    at = date.fromordinal(day)
    index = 12 * at.year + at.month - 1 - number * size
    return _month(index) + min(at.day, _month(index + 1) - _month(index)) - 1


def _unit(day: int, size: int, offset: int = 0) -> Pair:
    """Returns the day, week, month, quarter or year around a day, or one before or after it."""
    if size > 0:
        begin = ((day - 1) // size + offset) * size + 1
        return begin, begin + size
    at = date.fromordinal(day)
    index = ((12 * at.year + at.month - 1) // -size + offset) * -size
    return _month(index), _month(index - size)


def _year(year: int) -> Pair:
    return _month(12 * year), _month(12 * year + 12)


@lru_cache(1 << 12)
def _month(index: int) -> int:
    """Returns the first day of a month, counted from the year 0, within the calendar's bounds."""
    year, month = divmod(max(12, min(index, 12 * 9_998)), 12)
    return date(year, month + 1, 1).toordinal()


EARLIEST, LATEST = _month(12 * 1970), _month(12 * 2100)
"""Times outside are not believed; "before May" begins with the first."""
