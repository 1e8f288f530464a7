"""The words of time, Ukrainian and English, in the forms in which they are written.

`LEXICON` maps a word to its category and value. A category is one letter, so that the grammar in
`services/memory/periods.py` can be a regular expression over the letters of a text's words:

- `M`/`N` Ukrainian/English month, `S` season, `K` quarter, `H` half-year: first month, months
- `W` weekday or weekend: days from Monday, days
- `U` day or week, `Y` year and other units of months: days, or months as a negative number
- `O` hour or minute: hours. `L` part of a day
- `R` yesterday, today: days from today. `q` last year in one word: years from this one
- `r` last, this, next: -1, 0, 1. `k` "the past". `A` ago. `j` that. `G` in (from now on). `E` now
- `p`/`P` beginning, middle, end, with or without a preposition: index of a third. `v` half
- `c` cardinal, `f` a few: lowest and highest number. `o` ordinal. `C` day of a month ("числа")
- `F` from, `T` to, `d` until, `B` between, `&` and, `s` since, `a` after, `b` before
- `i` preposition, `l` "at", `h` word that changes nothing. `$` what is counted,
  `V` what is numbered, `!` what the adjective "лютий" stands before
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import islice

ADJECTIVE = "|ий|ій|ого|ього|ому|ьому|им|ім|а|я|ої|ьої|у|ю|ою|ьою|е|є|і|их|іх|ими|іми"


def _spelled(words: str) -> Iterator[str]:
    """Yields the forms of each: `a|b|c` is ab and ac, `a*` an adjective of the stem a."""
    for word in words.split():
        stem, *endings = word.replace("*", ADJECTIVE).split("|")
        yield from (stem + ending for ending in endings or [""])


NOUN = "|ень|ня|ню|нем|ні"
MONTHS = (
    (f"січ{NOUN} січнев*", "january jan"),
    ("лют|ий|ого|ому|им лютнев*", "february feb"),
    (f"берез{NOUN} березнев*", "march mar"),
    (f"квіт{NOUN} квітнев*", "april apr"),
    (f"трав{NOUN} травнев*", "may"),
    (f"черв{NOUN} червнев*", "june jun"),
    (f"лип{NOUN} липнев*", "july jul"),
    (f"серп{NOUN} серпнев*", "august aug"),
    (f"верес{NOUN} вереснев*", "september sep sept"),
    (f"жовт{NOUN} жовтнев*", "october oct"),
    ("листопад||а|у|ом|і листопадов*", "november nov"),
    (f"груд{NOUN} грудневий грудневого грудневому грудневі грудневих", "december dec"),
)
WEEKDAYS = (
    "понеділ|ок|ка|ку|ком|ки|ків|ках понеділков* monday mondays mon",
    "вівтор|ок|ка|ку|ком|ки|ків|ках tuesday tuesdays tue tues",
    "серед|а|и|і|у|ою wednesday wednesdays wed",
    "четвер||га|гу|гом|зі|ги|гів thursday thursdays thu thur thurs",
    "пятни|ця|ці|цю|цею|ць friday fridays fri",
    "субот|а|и|і|у|ою saturday saturdays sat",
    "неділ|я|і|ю|ею|ь sunday sundays sun",
)
SEASONS = {
    3: "навесні весн|а|и|і|у|ою весняного spring",
    6: "влітку улітку літ|о|а|у|ом|і summer",
    9: "восени осін|ь|і|ню осінню autumn fall",
    12: "взимку узимку зим|а|и|і|у|ою winter",
}
UNITS = {
    1: "день дня дню дні днів днем днями доб|а|и|у|і діб day days",
    7: "тиж|день|ня|ню|ні|нів|нем|нями|нях week weeks",
    -1: "місяц|я|ю|і|ів|ем|ями|ях місяць month months",
    -3: "квартал||у|і|ом|и|ів|ами|ах quarter quarters",
    -6: "півріччя півріччі півроку",
    -12: "рік рок|у|и|ів|ом|ами|ах|ові році р рр year years",
}
CARDINALS = (
    "один одна одну одного однієї one",
    "два дві двох двом two",
    "три трьох трьом three",
    "чотири чотирьох чотирьом four",
    "пять пяти пятьох five",
    "шість шести шістьох six",
    "сім семи сімох seven",
    "вісім восьми вісьмох eight",
    "девять девяти девятьох nine",
    "десять десяти десятьох ten",
    "одинадцять eleven",
    "дванадцять twelve",
)
ORDINALS = (
    "перш* first",
    "друг* second",
    "трет* third",
    "четверт* fourth",
    "пят* fifth",
    "шост* sixth",
    "сьом* seventh",
    "восьм* eighth",
    "девят* ninth",
    "десят* tenth",
    "одинадцят* eleventh",
    "дванадцят* twelfth",
    "тринадцят* thirteenth",
    "чотирнадцят* fourteenth",
    "пятнадцят* fifteenth",
    "шістнадцят* sixteenth",
    "сімнадцят* seventeenth",
    "вісімнадцят* eighteenth",
    "девятнадцят* nineteenth",
    "двадцят* twentieth",
)
Value = tuple[float, float]
NOTHING = (0.0, 0.0)
_TABLE: list[tuple[str, Value, str]] = [
    *(("M", (n, 1), forms) for n, (forms, _) in enumerate(MONTHS, 1)),
    *(("N", (n, 1), forms) for n, (_, forms) in enumerate(MONTHS, 1)),
    *(("W", (n, 1), forms) for n, forms in enumerate(WEEKDAYS)),
    ("W", (5, 2), "вихідн* weekend weekends"),
    *(("S", (first, 3), forms) for first, forms in SEASONS.items()),
    *(("U" if size > 0 else "Y", (size, size), forms) for size, forms in UNITS.items()),
    ("O", (1, 1), "годин|а|и|у|ою|ами hour hours"),
    ("O", (1 / 60, 1), "хвилин||а|и|у|ою minute minutes"),
    ("L", NOTHING, "ран|ок|ку|ком вечір вечора вечором ніч ночі morning evening night afternoon"),
    ("R", (-3, 0), "позапозавчора"),
    ("R", (-2, 0), "позавчора позавчорашн*"),
    ("R", (-1, 0), "вчора учора вчорашн* учорашн* yesterday"),
    ("R", (0, 0), "сьогодні сьогоднішн* today tonight"),
    ("R", (1, 0), "завтра завтрашн* tomorrow"),
    ("R", (2, 0), "післязавтра"),
    ("q", (-2, 0), "позаторік позаторішн*"),
    ("q", (-1, 0), "торік торішн* минулоріч минулорічн*"),
    ("q", (0, 0), "цьогоріч цьогорічн*"),
    ("r", (-2, 0), "позаминул*"),
    ("r", (-1, 0), "минул* попередн* last previous"),
    ("r", (0, 0), "цей цього цьому цим ця цієї цій цю цією це ці цих цими поточн* this current"),
    ("r", (1, 0), "наступн* next coming"),
    ("k", NOTHING, "останн* past"),
    ("A", NOTHING, "тому назад ago"),
    ("j", NOTHING, "той того"),
    ("G", NOTHING, "через"),
    ("E", NOTHING, "зараз тепер дотепер донині досі now"),
    ("P", (0, 3), "early"),
    ("P", (1, 3), "mid"),
    ("P", (2, 3), "наприкінці late"),
    ("p", (0, 3), "почат|ок|ку|ком beginning start"),
    ("p", (1, 3), "середин|а|и|і|у|ою middle"),
    ("p", (2, 3), "кін|ець|ця|цю|ці|цем end"),
    ("v", (0.5, 0.5), "половин|а|и|і|у|ою half"),
    ("c", (0.5, 0.5), "пів"),
    ("c", (1.5, 1.5), "півтора півтори"),
    *(("c", (n, n), forms) for n, forms in enumerate(CARDINALS, 1)),
    ("c", (20, 20), "двадцять двадцяти twenty"),
    ("c", (30, 30), "тридцять тридцяти thirty"),
    ("f", (2, 3), "пару пара couple"),
    ("f", (2, 5), "кілька кількох декілька декількох few several"),
    *(("o", (n, n), forms) for n, forms in enumerate(ORDINALS, 1)),
    ("o", (30, 30), "тридцят* thirtieth"),
    *(("n", (n, n), forms) for n, forms in ((2, "ii іі"), (3, "iii ііі"), (4, "iv іv"))),
    *(("Q", (3 * n - 2, 3), f"q{n}") for n in (1, 2, 3, 4)),
    *(("Q", (6 * n - 5, 6), f"h{n}") for n in (1, 2)),
    ("C", NOTHING, "числа число"),
    ("F", NOTHING, "з із зі від од from"),
    ("T", NOTHING, "по to through"),
    ("d", NOTHING, "до until till"),
    ("B", NOTHING, "між between"),
    ("&", NOTHING, "і й та and"),
    ("s", NOTHING, "since починаючи відколи"),
    ("a", NOTHING, "після after"),
    ("b", NOTHING, "перед before"),
    (
        "i",
        NOTHING,
        "у в на за під протягом упродовж впродовж станом про of in on during over for by",
    ),
    ("l", NOTHING, "о об at"),
    ("h", NOTHING, "the a an зо десь приблизно about весь всього увесь ж же самого самому"),
    (
        "$",
        NOTHING,
        (
            "грн гривня гривні гривень гривнями uah usd eur долари доларів євро dollars euros"
            " токенів токени tokens осіб людей людини людям people users"
            " гб мб кг км шт штук рядків слів"
            " разів rows lines words points балів голосів відсотків percent times метрів літрів"
        ),
    ),
    (
        "!",
        NOTHING,
        (
            "мороз морозі морозом холод холоді холодом вітер вітрі вітром ворог ворогом вовк вовком"
            " звір гнів гніві бій бою погляд поглядом"
        ),
    ),
    (
        "V",
        NOTHING,
        (
            "версія версії версію версій version release v пункт пункту пункті розділ розділу"
            " розділі section chapter стаття статті ст п ip"
        ),
    ),
]
LEXICON: dict[str, tuple[str, Value]] = {
    form: (category, value) for category, value, words in _TABLE for form in _spelled(words)
}

DOUBTFUL = frozenset(
    _spelled(
        "лют|ий|ого|ому|им грудні весн|а|и|і|у|ою літ|о|а|у|ом|і осін|ь|і|ню зим|а|и|і|у|ою"
        " march april may june august jan mar dec spring summer autumn fall winter"
        " mon wed fri sat sun"
    )
)
"""Words that are often something else: a verb, a name, an adjective. Others beside them decide."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, number or sign of a text, with its category and value."""

    category: str
    value: Value
    text: str


TOKEN = re.compile(
    r"(?P<iso>\d{4}-\d\d(?:-\d\d)?)(?!-?\d)"
    r"|(?P<date>\d{1,2}(?P<mark>[./])\d{1,2}(?P=mark)(?:\d{4}|\d\d))(?![./]?\d)"
    r"|(?P<short>\d\d\.\d\d)(?!\.?\d)"
    r"|(?P<number>\d+(?:[.,:/]\d+)*)(?P<suffix>-?(?:st|nd|rd|th|го|му|ий|ій|й|м|те|є)\b)?"
    r"|(?P<word>[^\W\d_][\w']*(?:-\d[\w-]*)?)"
    r"|(?P<sign>[^\s\w])"
)
MARKS = str.maketrans(dict.fromkeys("’ʼ‘`´′＇", "'") | dict.fromkeys("\u0301\u00ad\u200b"))
SIGNS = dict.fromkeys("-–—‒", "-") | dict.fromkeys(",()", ",") | dict.fromkeys("$€₴%", "$")
OTHER = ("x", NOTHING)

YEAR_BEFORE = re.compile(r"(?:[iFTdBabsMNSQYPpv]|ih|[MNno],|[MN][no]|y[-&T])$")
YEAR_AFTER = re.compile(r"Y|-y")
BEFORE = re.compile(r"(?:[iFdBabsrkPpvno]|P-|[MNS][-&T])$")
LOUD_BEFORE = re.compile(r"[iFTdBabsrkPpvno&,h-]$")
AFTER = re.compile(r"[noyq]|[-T&][MNSno]|,[yno]")


def read_words(text: str) -> list[Word]:
    """Returns the words of a text; a doubtful one has the category that those beside it give."""
    text = unicodedata.normalize("NFC", text).translate(MARKS)
    words = [_word(match) for match in TOKEN.finditer(text)]
    letters = ["x", "x", *(word.category for word in words), "x", "x"]
    for index, word in enumerate(words):
        if word.category == "x":
            continue
        before = letters[index] + letters[index + 1]
        after = letters[index + 3] + letters[index + 4]
        sure = True
        if word.category == "y":
            if word.text.isdecimal():
                sure = bool(YEAR_BEFORE.search(before) or YEAR_AFTER.match(after))
            sure = sure and after[0] != "$"
        elif word.category in "De":
            sure = "V" not in before and not (word.category == "e" and "l" in before)
        elif word.text.casefold() in DOUBTFUL:
            loud = word.text.isascii() and word.text[0].isupper()
            sure = bool((LOUD_BEFORE if loud else BEFORE).search(before) or AFTER.match(after))
            sure = sure or (before == "ih" and word.category != "W")
            sure = sure and after[0] != "!"
        if not sure:
            letters[index + 2] = "x"
    return [replace(word, category=letters[n]) for n, word in enumerate(words, 2)]


def _word(match: re.Match[str]) -> Word:
    text = match[0]
    if match["word"]:
        form = text.casefold().removesuffix("'s").replace("'", "")
        return Word(*LEXICON.get(form, OTHER), text)
    if match["sign"]:
        return Word(SIGNS.get(text, "."), NOTHING, text)
    if match["number"]:
        return Word(*_number(match["number"], suffixed=match["suffix"] is not None), text)
    return Word(*_date([int(part) for part in re.split("[-./]", text)]), text)


def _number(digits: str, *, suffixed: bool) -> tuple[str, Value]:
    number = int(digits) if len(digits) <= 4 and digits.isdecimal() else 0
    if len(digits) == 4 and 1970 <= number <= 2100:
        return "y", (number, number)
    if not 0 < number < 1000 or (suffixed and number > 31):
        return OTHER
    return "o" if suffixed else "n" if number <= 31 else "g", (number, number)


def _date(parts: list[int]) -> tuple[str, Value]:
    """Reads year-month(-day), day.month(.year) and, where that is no date, month/day/year."""
    try:
        if len(parts) == 2 and parts[0] > 31:
            first = date(parts[0], parts[1], 1)
            return "D", (first.toordinal(), (first + timedelta(days=32)).replace(day=1).toordinal())
        if len(parts) == 2:
            date(2024, parts[1], parts[0])  # a leap year
            return "e", (parts[1], parts[0])
        year, month, day = parts if parts[0] > 31 else reversed(parts)
        if month > 12:
            month, day = day, month
        found = date(year + 2000 if year < 100 else year, month, day).toordinal()
    except (ValueError, OverflowError):
        return OTHER
    return "D", (found, found + 1)


# Questions for a time, and texts that hold one.

TELLING = re.compile(
    r"\b(?:зна|памят|нагада|скаж|підкаж|розкаж|дізна|уточн|цікав|зрозумі|покаж|забу|вкаж|відомо"
    r"|know|remember|recall|remind|tell|say|ask|wonder|sure|idea|find|forg)"
)
ASKING = re.compile(
    r"\b(?:що|хто|кого|кому|ким|чого|чому|де|куди|як|який|яка|яке|які|яку|скільки|чи|навіщо"
    r"|what|who|whom|whose|where|how|why|which|did|do|does|is|are|was|were|can|could)\b"
)
TIME_ASKED = re.compile(
    r"\b(?:на котру|о котрій|котра година|котрого|відколи|як давно|як довго|давно чи|скільки часу"
    r"|скільки (?:днів|тижнів|місяців|років|годин)"
    r"|як(?:ого|ий|а|им|ої|их|і|у|ому|ій) (?:сьогодні )?(?:числ|дня\b|дні\b|день|дат|рок|роц|рік"
    r"|місяц|тиж|годин|час)"
    r"|(?:what|which) (?:exact )?(?:time|date|day|month|year|week|season)|how long|how often"
    r"|how many (?:minutes|hours|days|weeks|months|years)|since when)"
)
WHEN = re.compile(r"\b(?:коли\b|when(?=s?\b))")
WHEN_OF_ACT = re.compile(
    r"s\b| (?:exactly )?(?:did|do|does|is|are|was|were|will|would|should|can|could|has|have"
    r"|had|may|might|shall)\b"
)
CONDITION = re.compile(r"[^.?!,]{1,200}, (?:то|що|хто|кого|кому|як|де|куди|чому|скільки|чи|який)\b")
SAID = re.compile(r"\b(?:каза|сказа|писа|обіця|повідом|згад|виріш|домов|заяв|дізна|зрозумі)")


def asks_when(question: str) -> bool:
    """Says whether a question asks for a time: a date, an hour, a duration."""
    text = " ".join(question.casefold().translate(MARKS).replace("'", "").split())
    if TIME_ASKED.search(text):
        return True
    for match in islice(WHEN.finditer(text), 8):
        before = re.split("[.!?;:]", text[max(0, match.start() - 120) : match.start()])[-1]
        after = text[match.end() : match.end() + 240]
        if TELLING.search(before) or before.endswith((" і ", " й ", " та ", " and ", " or ")):
            return True
        if ASKING.search(before):
            continue
        if match[0] == "when" and (WHEN_OF_ACT.match(after) or not after.strip(" ?.")):
            return True
        condition = CONDITION.match(after)
        conditional = condition and not SAID.search(condition[0])
        if match[0] == "коли" and not conditional and ("?" in after or not before.strip()):
            return True
    return False


TIMELESS = frozenset(
    _spelled("день day дня днем літ зим зима р рр лютий лютим may march fall now зараз")
)
TIME_WORDS = (
    frozenset(
        _spelled(
            "вранці зранку ввечері увечері вночі уночі опівдні опівночі вдень удень щодня щотижня"
            " щомісяця щороку нещодавно скоро noon midnight daily weekly monthly yearly soon"
            " ятниц|я|і|ю|ею|ь"  # after "п’"
        )
    ).union(form for form, (category, _) in LEXICON.items() if category in "MNSWUYORLq")
    - TIMELESS
)
FORM = re.compile(r"[^\W\d_]+")
GREETING = re.compile(r"\b(?:добр\w+|good|nice|have a) (?:\w+)")
CLOCK = re.compile(
    r"\b\d{1,2}:\d\d\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b|\b(?:19|20)\d\d\b|\b\d{1,2} ?[ap]\.?m\b"
    r"|\b(?:о|об|at) \d{1,2}\b|\b\d\d\.(?:0\d|1[0-2])\b|\b(?:may|march) \d|\d(?:st|nd|rd|th)\b"
    r"|\d (?:of )?(?:may|march)\b"
)
HOUR = re.compile(r"\bоб? \w+ій\b|\b(?:in|of|since|by|until|last|next|this) (?:may|march|fall)\b")


def holds_time(text: str) -> bool:
    """Says whether a text has an expression of time: a date, an hour, "tomorrow", "two weeks"."""
    lowered = text.lower()
    if "добр" in lowered or "good" in lowered or "nice" in lowered:
        lowered = GREETING.sub("", lowered)
    return (
        not TIME_WORDS.isdisjoint(FORM.findall(lowered))
        or CLOCK.search(lowered) is not None
        or HOUR.search(lowered) is not None
    )
