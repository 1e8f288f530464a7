"""Cuts texts into 4-grams. Pure.

PostgreSQL has no Ukrainian stemmer. Grams of four letters find `спільнота` in `спільнотою` and
`спільнот` without a dictionary, and work for every other language. Cyrillic letters are replaced by
Latin ones, so that names and loanwords match: `Мукачево` and Mukachevo, `токен` and token.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter

from common.alphabet import one_alphabet

GRAM = 4

_BOUNDARY = "_"
_PROBED = ((0x30, 0x250), (0x370, 0x530), (0x2010, 0x2070))
"""Ranges of letters in the fingerprint: Latin, Greek and Cyrillic, and punctuation inside words."""
_APOSTROPHES = str.maketrans(dict.fromkeys("’ʼ‘`´′＇", "'"))
_INSIDE_WORD = re.compile(r"(?<=\w)'(?=\w)")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff\u0300\u0301]")
_WORD = re.compile(r"[^\W_]+")
_CYRILLIC = re.compile("[\u0400-\u04ff]")
_LOOKALIKES = str.maketrans("aceiopxyk", "асеіорхук")
"""Latin letters that are typed in Cyrillic words by mistake, and the Cyrillic ones."""


def normalise(text: str) -> str:
    """Returns `text` composed and case-folded, as it is compared.

    Stress marks, apostrophes inside words and invisible characters are removed.
    """
    # Apostrophes first: one of them decomposes into a blank and a stress mark.
    decomposed = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).casefold()
    composed = unicodedata.normalize("NFC", _INVISIBLE.sub("", decomposed))
    return _INSIDE_WORD.sub("", composed)


def words(text: str) -> list[str]:
    """Returns the words and numbers of `text`, normalised, in order."""
    return [_one_script(word) for word in _WORD.findall(normalise(text))]


def grams(text: str) -> dict[str, int]:
    """Returns the 4-grams of `text` and how often each occurs.

    Words get a mark at both ends, so that beginnings and endings count: `дао` gives `_dao` and
    `dao_`. A shorter word is one gram.
    """
    counts: Counter[str] = Counter()
    for word in words(text):
        marked = f"{_BOUNDARY}{one_alphabet(word)}{_BOUNDARY}"
        counts.update(
            marked[start : start + GRAM] for start in range(max(1, len(marked) - GRAM + 1))
        )
    return dict(counts)


def fingerprint() -> str:
    """Returns a hash of what `grams` makes of the letters of Latin, Greek and Cyrillic.

    Areas record it with their terms. When a release cuts words differently, it changes, and upkeep
    makes the terms again.
    """
    letters = [chr(code) for first, last in _PROBED for code in range(first, last)]
    probe = " ".join(
        word for letter in letters for word in (f"ab{letter}cd", f"дж{letter}щю", letter * 2)
    )
    return hashlib.sha256(repr(sorted(grams(f"{probe} don't п'ять").items())).encode()).hexdigest()[
        :16
    ]


def _one_script(word: str) -> str:
    return word.translate(_LOOKALIKES) if _CYRILLIC.search(word) else word
