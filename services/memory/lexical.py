"""Search by parts of words: texts to 4-grams, weighed by BM25. Pure.

Ukrainian inflects stems and endings, and PostgreSQL has no stemmer for it; grams of four letters find `спільнота` in
`спільнотою` and `спільнот` without any dictionary, and serve every other language alike. Cyrillic and Latin words are
spelled in one alphabet, letter by letter, so that names and loanwords meet: `Мукачево` and Mukachevo, `токен` and token.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

GRAM = 4
K1 = 1.2
B = 0.75
"""BM25's usual constants (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009)."""
MAX_QUERY_GRAMS = 32

_BOUNDARY = "_"
_PROBED = ((0x30, 0x250), (0x370, 0x530), (0x2010, 0x2070))
_APOSTROPHES = str.maketrans(dict.fromkeys("’ʼ‘`´′＇", "'"))
_INSIDE_WORD = re.compile(r"(?<=\w)'(?=\w)")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff\u0300\u0301]")
_WORD = re.compile(r"[^\W_]+")
_CYRILLIC = re.compile("[\u0400-\u04ff]")
_LOOKALIKES = str.maketrans("aceiopxyk", "асеіорхук")
"""Latin letters that slip into Cyrillic words, and what was meant."""
_ONE_ALPHABET = str.maketrans(
    dict(zip("абвгґдеєёэзийіїыклмнопрстуфх", "abvggdeeeeziiiiiklmnoprstufh", strict=True))
    | {"ь": "", "ъ": "", "c": "k", "w": "v", "y": "i"}
)
"""One Latin letter where a Cyrillic one has a counterpart; the others (ж, ц, ч, ш, щ, ю, я) stay. Latin letters that are
written for the same sound in transcriptions fall together, in questions and in texts alike."""


@dataclass(frozen=True, slots=True)
class QueryGram:
    """One gram of a question with its weight: how rare it is among the tenant's chunks, times how often it was asked."""

    gram: str
    weight: float


def normalise(text: str) -> str:
    """Returns `text` as it is compared: composed, case folded, without stress marks, apostrophes inside words, or invisible characters."""
    # Apostrophes first: one of them decomposes into a blank and a stress mark.
    decomposed = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).casefold()
    composed = unicodedata.normalize("NFC", _INVISIBLE.sub("", decomposed))
    return _INSIDE_WORD.sub("", composed)


def words(text: str) -> list[str]:
    """Returns the words and numbers of `text`, normalised, in order."""
    return [_one_script(word) for word in _WORD.findall(normalise(text))]


def grams(text: str) -> dict[str, int]:
    """Returns the 4-grams of `text` and how often each occurs.

    A word is taken with a mark at both ends, so that beginnings and endings count: `дао` gives `_dao` and `dao_`. Words
    too short for that give themselves.
    """
    counts: Counter[str] = Counter()
    for word in words(text):
        marked = f"{_BOUNDARY}{word.translate(_ONE_ALPHABET)}{_BOUNDARY}"
        counts.update(
            marked[start : start + GRAM] for start in range(max(1, len(marked) - GRAM + 1))
        )
    return dict(counts)


def spelling() -> str:
    """A fingerprint of what `grams` makes of the letters of Latin, Greek and Cyrillic.

    Stored terms carry it: after a change of `grams` it is another one, and the terms are made anew.
    """
    letters = [chr(code) for first, last in _PROBED for code in range(first, last)]
    probe = " ".join(
        word for letter in letters for word in (f"ab{letter}cd", f"дж{letter}щю", letter * 2)
    )
    return hashlib.sha256(repr(sorted(grams(f"{probe} don't п'ять").items())).encode()).hexdigest()[
        :16
    ]


def length(counts: Mapping[str, int]) -> int:
    """The length of a text in grams, as BM25 counts it."""
    return sum(counts.values())


def rarity(documents: int, frequency: int) -> float:
    """BM25's inverse document frequency, never negative: what a gram held by `frequency` of `documents` tells."""
    frequency = min(frequency, documents)
    return math.log1p((documents - frequency + 0.5) / (frequency + 0.5))


def weigh(
    question: Mapping[str, int],
    frequencies: Mapping[str, int],
    documents: int,
    limit: int = MAX_QUERY_GRAMS,
) -> list[QueryGram]:
    """Returns the grams worth looking for, rarest first, at most `limit`.

    `question` are the question's `grams`; `frequencies` tells in how many of the tenant's `documents` chunks each occurs.
    Grams that occur nowhere cannot be found, yet they are part of the question: they are weighed (and reported by
    `ceiling`), so that a question about something unknown does not look answered.
    """
    weighed = [
        QueryGram(gram, rarity(documents, frequencies.get(gram, 0)) * _saturated(count))
        for gram, count in question.items()
    ]
    return sorted(weighed, key=lambda entry: (-entry.weight, entry.gram))[:limit]


def ceiling(question: list[QueryGram]) -> float:
    """The BM25 of a chunk of average length that holds every gram of the question once."""
    return sum(entry.weight for entry in question)


def bm25(question: list[QueryGram], counts: Mapping[str, int], average_length: float) -> float:
    """Returns the BM25 of a chunk with these gram `counts`; `average_length` is over the tenant's chunks, in grams."""
    relative = length(counts) / average_length if average_length > 0 else 1.0
    dampening = K1 * (1 - B + B * relative)
    found = ((entry.weight, counts.get(entry.gram, 0)) for entry in question)
    return sum(weight * count * (K1 + 1) / (count + dampening) for weight, count in found if count)


def _saturated(count: int) -> float:
    """A gram asked twice counts more, but not twice."""
    return 1 + math.log(count)


def _one_script(word: str) -> str:
    return word.translate(_LOOKALIKES) if _CYRILLIC.search(word) else word
