"""The words of time, Ukrainian and English, and what they do to a text.

A word becomes a letter for its category and a value of two numbers, so that the grammar in
`services/memory/periods.py` can be a regular expression over the letters of a text:

- `D` date, `e` day and month in digits: year or 0, and 100 · month + day
- `M`/`N` Ukrainian/English month, `S` season, `Q` "Q3": its first month, and how many
- `W` weekday or weekend: days from Monday, and how many. `y` year
- `J` day, `U` week, `Y` month or year, `K` quarter or half-year: days, or months below 0; `O` hour,
  minute: how many in a day
- `R` yesterday, today: days from today. `q` last year in one word: years from this one
- `r` last, this, next: -1, 0, 1. `k` "the past". `A` ago. `j` that. `G` in (from now on). `E` now
- `p`/`P` beginning, middle, end, after a preposition or not: index and number of parts. `v` half
- `n` 1 to 31, `t` 3rd, `g` larger number, `c` number in letters, `o` ordinal in letters
- `f` a few: lowest and highest number. `C` "числа". `L` part of a day
- `F` from, `T` to, `d` until, `B` between, `&` and, `s` since, `a` after, `b` before
- `i` preposition, `l` "at", `X` every, `h` word that changes nothing. `$` what is counted, `V`
  what has a number of its own, `!` what "лютий" stands before as an adjective. `x` other words

Doubtful words, which may be a verb, a name, an adjective, a sum, are digits until their neighbours
decide: `1` Ukrainian month, `2`/`3` English month in small letters/with a capital, `4`/`5` season,
`6`/`7` short weekday, `8` number that may be a year.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

Pair = tuple[int, int]

MONTHS = (
    "січ січ+ січнев* january jan",
    "лют лют|ий|ого|ому|им лютнев* february feb",
    "берез+ березнев* march mar",
    "квіт квіт+ квітнев* april apr",
    "трав+ травнев* may",
    "черв черв+ червнев* june jun",
    "лип+ липнев* july jul",
    "серп серп+ серпнев* august aug",
    "верес+ вереснев* september sep sept",
    "жовт жовт+ жовтнев* october oct",
    "листопад||а|у|ом|і листопадов* november nov",
    "груд груд+ груднев|ий|ого|ому|ої|ій|у|і|их december dec",
)
TABLE: list[tuple[str, Pair, str]] = [
    *(
        ("MN"[form.isascii()], (n, 1), form)
        for n, row in enumerate(MONTHS, 1)
        for form in row.split()
    ),
    *(
        ("W", (n, 1), row)
        for n, row in enumerate(
            (
                "пн понеділ|ок|ка|ку|ком|ки|ків|ках понеділков* monday mon",
                "вт вівтор|ок|ка|ку|ком|ки|ків|ках tuesday tue tues",
                "ср серед|а|и|і|у|ою wednesday wed",
                "чт четвер||га|гу|гом|зі|ги|гів thursday thu thur thurs",
                "пт пятни|ця|ці|цю|цею|ць friday fri",
                "сб субот|а|и|і|у|ою saturday sat",
                "нд неділ|я|і|ю|ею|ь sunday sun",
            )
        )
    ),
    ("W", (5, 2), "вихідн* вікенд||и|у|і weekend weekends"),
    ("S", (3, 3), "навесні весн|а|и|і|у|ою spring"),
    ("S", (6, 3), "влітку улітку літ|о|а|у|ом|і summer"),
    ("S", (9, 3), "восени осінь осені осінню autumn fall"),
    ("S", (12, 3), "взимку узимку зим|а|и|і|у|ою winter"),
    *(("Q", (3 * n - 2, 3), f"q{n}") for n in (1, 2, 3, 4)),
    *(("Q", (6 * n - 5, 6), f"h{n}") for n in (1, 2)),
    ("J", (1, 0), "день дня дню дні днів днем днями доб|а|и|у|і діб day days"),
    ("U", (7, 0), "тиж|день|ня|ню|ні|нів|нем|нями|нях week weeks"),
    ("Y", (-1, 0), "місяц|я|ю|і|ів|ем|ями|ях місяць month months"),
    ("K", (-3, 0), "квартал||у|і|ом|и|ів|ами|ах quarter quarters"),
    ("K", (-6, 0), "півріччя півріччі півроку"),
    ("Y", (-12, 0), "рік рок|у|и|ів|ом|ами|ах|ові році р рр year years"),
    ("O", (24, 0), "годин||а|и|у|ою|ами hour hours"),
    ("O", (24 * 60, 0), "хвилин||а|и|у|ою minute minutes"),
    ("L", (0, 0), "ран|ок|ку|ком вечір вечора вечором ніч ночі morning evening night afternoon"),
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
    ("r", (0, 0), "цей ць|ого|ому ц|им|я|ієї|ій|ю|ією|е|і|их|ими поточн* this current"),
    ("r", (1, 0), "наступн* next coming"),
    ("k", (-1, 0), "останн* past"),
    ("A", (0, 0), "тому назад ago"),
    ("j", (0, 0), "той того"),
    ("G", (0, 0), "через"),
    ("E", (0, 0), "зараз тепер дотепер донині досі now"),
    ("P", (0, 3), "early"),
    ("P", (1, 3), "mid"),
    ("P", (2, 3), "наприкінці late"),
    ("p", (0, 3), "почат|ок|ку|ком beginning start"),
    ("p", (1, 3), "середин|а|и|і|у|ою middle"),
    ("p", (2, 3), "кін|ець|ця|цю|ці|цем end"),
    ("v", (0, 0), "половин|а|и|і|у|ою half пів"),
    ("z", (0, 0), "декад|а|и|у|і"),
    ("v", (1, 1), "півтора півтори"),
    *(
        ("c", (n, n), row)
        for n, row in enumerate(
            (
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
                "одинадцять одинадцяти eleven",
                "дванадцять дванадцяти twelve",
                *("тринадцять", "чотирнадцять", "пятнадцять", "шістнадцять", "сімнадцять"),
                *("вісімнадцять", "девятнадцять", "двадцять двадцяти twenty"),
            ),
            1,
        )
    ),
    ("c", (30, 30), "тридцять тридцяти thirty"),
    ("c", (100, 100), "сто ста hundred"),
    ("f", (2, 3), "пару пара couple"),
    ("f", (2, 5), "кілька кількох декілька декількох few several"),
    *(
        ("o", (n, n), row)
        for n, row in enumerate(
            (
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
                *("twenty-first", "twenty-second", "twenty-third", "twenty-fourth", "twenty-fifth"),
                *("twenty-sixth", "twenty-seventh", "twenty-eighth", "twenty-ninth"),
                "тридцят* thirtieth",
                "thirty-first",
            ),
            1,
        )
    ),
    *(("n", (n, n), row) for n, row in ((2, "ii іі"), (3, "iii ііі"), (4, "iv іv"))),
    ("C", (0, 0), "числа число"),
    ("F", (0, 0), "з із зі від од from"),
    ("T", (0, 0), "по to through"),
    ("d", (0, 0), "до until till by"),
    ("B", (0, 0), "між between"),
    ("&", (0, 0), "і й та and"),
    ("s", (0, 0), "since починаючи відколи"),
    ("a", (0, 0), "після after"),
    ("b", (0, 0), "перед before"),
    (
        "i",
        (0, 0),
        "у в на за під протягом упродовж впродовж станом про of in on during over for",
    ),
    ("l", (0, 0), "о об at"),
    ("h", (0, 0), "the a an зо десь приблизно about весь всього увесь ж же самого самому"),
    ("X", (0, 0), "кожен кожн* every each"),
    ("!", (0, 0), "мороз|||і|ом холод||і|ом віт|ер|рі|ром ворог||ом вовк||ом звір гнів||і бій бою"),
    ("V", (0, 0), "версі|я|ї|ю|й version release v пункт||у|і розділ||у|і section chapter ст п"),
    ("V", (0, 0), "вулиц|я|і|ю|ею вул ip"),
    ("$", (0, 0), "грн грив|ня|ні|ень|нями uah usd eur долар||и|ів євро dollars euros токен||и|ів"),
    ("$", (0, 0), "tokens осіб людей людини людям people users гб мб кг км шт штук рядків слів"),
    ("$", (0, 0), "rows lines words points балів голосів відсотків percent разів метрів літрів"),
    *((sign, (0, 0), row) for sign, row in (("-", "- – — ‒"), (",", ", ( )"), ("$", "$ € ₴ %"))),
    (".", (0, 0), ". ? ! ; :"),
]
ADJECTIVE = "|ий|ій|ого|ього|ому|ьому|им|ім|а|я|ої|ьої|у|ю|ою|ьою|е|є|і|их|іх|ими|іми"


def _spelled(words: str) -> Iterator[str]:
    """Yields the forms of each: `a|b|c` is ab and ac, `a*` and `a+` are declined as січнев* is."""
    for word in words.replace("*", ADJECTIVE).replace("+", "|ень|ня|ню|нем|ні").split():
        stem, *endings = word.split("|")
        yield from (stem + ending for ending in endings or [""])


LEXICON = {form: (letter, value) for letter, value, row in TABLE for form in _spelled(row)}
LEXICON |= {
    form: (LEXICON[form][0].translate(str.maketrans("MNSW", "1246")), LEXICON[form][1])
    for form in _spelled(
        "лют|ий|ого|ому|им грудні весн|а|и|і|у|ою літ|о|а|у|ом|і осінь осені осінню зим|а|и|і|у|ою"
        " march april may june august jan mar dec spring summer autumn fall winter"
        " mon wed fri sat sun пн вт ср чт пт сб нд січ лют квіт черв серп жовт груд"
    )
}
SURE = re.compile(
    "(?:(?<=[iFdBabsrkPpvnot])[1246]|(?<=P-)[12]|(?<=ih)[124]|(?<=[MNSW1-7][-&T])[1246]"
    "|(?<=[iFTdBabsrkPpvnot&,h-])[357]|[1-7](?=[notyq8]|[-&T][MNSnot]|,[not8])"
    "|(?<=[iFTdBabsMNSQYKPpv1-5])8|(?<=ih)8|(?<=[MNnot1-3],)8|(?<=[MN1-3T-][not])8|(?<=[y8][-&T])8"
    "|8(?=Y|-8))(?![$!])"
)

DAY, MONTH, YEAR, ENDING = (
    "(?:0?[1-9]|[12][0-9]|3[01])",
    "(?:0?[1-9]|1[0-2])",
    "(?:19[7-9][0-9]|20[0-9][0-9])",
    "-?(?:st|nd|rd|th|го|му|ий|ій|й|м|те|є)",
)
TOKEN = re.compile(
    r"(?P<word>(?i:twenty|thirty)-[^\W\d_]+|[^\W\d_][\w']*(?:-\d[\w-]*)?)|(?P<sign>[^\s\w])"
    rf"|(?P<ymd>{YEAR}-{MONTH}(?:-{DAY})?|{YEAR}/{MONTH}/{DAY})(?![-./]?\d)"
    rf"|(?P<dmy>{DAY}(?P<mark>[./]){MONTH}(?P=mark)(?:{YEAR}|\d\d))(?![./]?\d)"
    rf"|(?P<mdy>{MONTH}/{DAY}/{YEAR})(?!/?\d)|(?P<my>(?=\d\d[./]){MONTH}[./]{YEAR})(?![./]?\d)"
    rf"|(?P<dm>(?=\d\d[./]\d\d){DAY}[./]{MONTH})(?![./]?\d)"
    rf"|(?P<y>{YEAR}{ENDING})\b|(?P<t>{DAY}{ENDING})\b"
    rf"|(?:(?P<_8>{YEAR})|(?P<n>{DAY})|(?P<g>\d{{1,3}}))\b(?![.,:/]\d)|(?P<x>\d[\d.,:/]*)"
)
CAPITAL = {"M": "1", "2": "3", "4": "5", "6": "7"}
ORDER = {"ymd": (0, 1, 2), "dmy": (2, 1, 0), "mdy": (2, 0, 1), "my": (1, 0, 2), "dm": (2, 1, 0)}
MARKS = str.maketrans(dict.fromkeys("’ʼ‘`´′＇", "'") | dict.fromkeys("\u0301\u00ad\u200b"))


def read_words(text: str) -> tuple[str, list[Pair]]:
    """Returns the letters of a text's first 1,000 words, numbers and signs, and their values."""
    text = unicodedata.normalize("NFC", text).translate(MARKS)
    found = [_word(match) for match in islice(TOKEN.finditer(text), 1_000)]
    letters = "".join(letter for letter, _ in found)
    meant = SURE.sub(lambda doubt: "MNNSSWWy"[int(doubt[0]) - 1], letters)
    return meant, [value for _, value in found]


def _word(match: re.Match[str]) -> tuple[str, Pair]:
    kind, text = match.lastgroup or "", match[0]
    if kind in {"word", "sign"}:
        form = text.casefold().removesuffix("'s").replace("'", "")
        letter, value = LEXICON.get(form, ("x", (0, 0)))
        named = text.istitle() and match.start() > 0  # by a capital inside a sentence
        return (CAPITAL.get(letter, letter) if named else letter), value
    numbers = [*map(int, re.findall(r"\d+", text[:10])), 0]
    if kind not in ORDER:
        return kind[-1], (numbers[0], numbers[0])
    year, month, day = (numbers[index] for index in ORDER[kind])
    return "De"[kind == "dm"], (year + 2000 * (0 < year < 100), 100 * month + day)


ASKED = (
    "що|хто|кого|кому|ким|чого|чому|де|куди|як|який|яка|яке|які|яку|скільки|чи|навіщо"
    "|what|who|whom|whose|where|how|why|which|did|do|does|is|are|was|were|can|could"
)
ASKS = re.compile(
    # A question word of time.
    r"\b(?:(?:на|до) коли|на котру|о котрій|котра година|котрого|відколи"
    r"|як давно|як довго|скільки часу"
    r"|скільки (?:днів|тижнів|місяців|років|годин)"
    r"|як(?:ого|ий|а|им|ої|их|і|у|ому|ій) (?:сьогодні )?(?:числ|дня\b|дні\b|день|дат"
    r"|рок|роц|рік|місяц|тиж|годин|час(?:у|ом|і)?\b)"
    r"|(?:what|which) (?:exact )?(?:time|date|day|month|year|week|season)\b|how long|how often"
    r"|how many (?:minutes|hours|days|weeks|months|years)|since when|(?:і|й|та) коли\b|and when\b)"
    # "Do you remember when …"
    r"|\b(?:зна(?:ти|ю|єш|є|єте|ють)\b|память|памята|нагада|скаж|підкаж|розкаж|дізна|уточн|цікав"
    r"|зрозумі|покаж|забу|вкаж|know|remember|recall|remind|tell|wonder|sure|idea|find out|forg)"
    r"[^.!?;:]{0,60}\b(?:коли|when)\b"
    # "When …" without another question word in front, and not "when …, what …".
    rf"|(?:^|[.!?;:])(?:(?!\b(?:{ASKED})\b)[^.!?;:]){{0,80}}\b"
    r"(?:when(?:s\b|\W*$| and | (?:exactly )?(?:did|do|does|is|are|was|were|will|would|should"
    r"|can|could|has|have|had|may|might|shall)\b)"
    r"|коли\b(?!(?:(?!\b(?:каза|сказа|писа|обіця|повідом|згад|виріш|домов|заяв|дізна|зрозумі))"
    r"[^.?!,]){1,200}, (?:(?:то|хто|кого|кому|чому|скільки|як)\b"
    r"|(?:що|де|куди) (?:\w+ ){0,3}\w+ти\b)))"
)


def asks_when(question: str) -> bool:
    """Says whether a question asks for a time: a date, an hour, a duration."""
    text = question.casefold().translate(MARKS).replace("'", "")
    return ASKS.search(" ".join(text.split())) is not None


TIME_WORDS = {form for form, (letter, _) in LEXICON.items() if letter in "MNSWJUYKORq1246"}.union(
    _spelled("вранці зранку ввечері увечері вночі уночі опівдні опівночі вдень удень нещодавно"),
    _spelled("щодня щотижня щомісяця щороку скоро noon midnight daily weekly monthly yearly soon"),
    _spelled("mondays tuesdays wednesdays thursdays fridays saturdays sundays"),
    _spelled("ятниц|я|і|ю|ею|ь"),  # after "п’"
).difference(_spelled("день day дня днем літ зим зима р рр лютий лютим may march fall"))
HINTS = frozenset(("о", "об", "may", "march", "fall", "morning", "evening"))
"""Words that `CLOCK` needs where a text has no digit."""
CLOCK = re.compile(
    r"\b\d{1,2}:\d\d\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b|\b(?:19|20)\d\d\b|\b\d{1,2} ?[ap]\.?m\b"
    r"|\b(?:о|об|at) \d{1,2}\b|\b\d\d\.(?:0\d|1[0-2])\b|\b(?:may|march) \d|\d(?:st|nd|rd|th)\b"
    r"|\d (?:of )?(?:may|march)\b|\bоб? \w+ій\b"
    r"|\b(?:in|of|since|by|until|last|next|this) (?:the )?(?:may|march|fall|morning|evening)\b"
)


def holds_time(text: str) -> bool:
    """Says whether a text has an expression of time: a date, an hour, "tomorrow", "two weeks"."""
    text = text.lower()
    words = re.findall(r"[^\W\d_]+", text)
    hinted = re.search(r"\d", text) or not HINTS.isdisjoint(words)
    return not TIME_WORDS.isdisjoint(words) or bool(hinted and CLOCK.search(text))
