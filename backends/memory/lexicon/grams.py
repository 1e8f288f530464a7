"""Cuts texts into 4-grams. Pure.

PostgreSQL has no Ukrainian stemmer. Grams of four letters find `спільнота` in `спільнотою` and
`спільнот` without a dictionary, and work for every other language. Cyrillic letters are replaced by
Latin ones, so that names and loanwords match: `Мукачево` and Mukachevo, `токен` and token.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from common.alphabet import one_alphabet

GRAM = 4

_BOUNDARY = "_"
_APOSTROPHES = str.maketrans(dict.fromkeys("’ʼ‘`´′＇", "'"))
_INSIDE_WORD = re.compile(r"(?<=\w)'(?=\w)")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff\u0300\u0301]")
_WORD = re.compile(r"[^\W_]+")
_SPELLED_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_CYRILLIC = re.compile("[\u0400-\u04ff]")
_LOOKALIKES = str.maketrans("aceiopxyk", "асеіорхук")
"""Latin letters that are typed in Cyrillic words by mistake, and the Cyrillic ones."""


def normalise(text: str) -> str:
    """Returns `text` composed and case-folded, as it is compared.

    Stress marks, apostrophes inside words and invisible characters are removed.
    """
    return _INSIDE_WORD.sub("", _folded(text))


def words(text: str) -> list[str]:
    """Returns the words and numbers of `text`, normalised, in order."""
    return [_one_script(word) for word in _WORD.findall(normalise(text))]


def spelled_words(text: str) -> list[str]:
    """Returns `words(text)` with the apostrophes inside them, as dictionaries have them."""
    return [_one_script(word) for word in _SPELLED_WORD.findall(_folded(text))]


def is_cyrillic(word: str) -> bool:
    """Whether `word` has a Cyrillic letter."""
    return _CYRILLIC.search(word) is not None


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


def _folded(text: str) -> str:
    # Apostrophes first: one of them decomposes into a blank and a stress mark.
    decomposed = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).casefold()
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", decomposed))


def _one_script(word: str) -> str:
    return word.translate(_LOOKALIKES) if is_cyrillic(word) else word
