"""The terms of a text: its 4-grams and its lemmas, in one index. Pure."""

from __future__ import annotations

import hashlib

import simplemma

from backends.memory.lexicon.grams import grams
from backends.memory.lexicon.lemmas import STOP_WORDS, lemmas

_PROBED = ((0x30, 0x250), (0x370, 0x530), (0x2010, 0x2070))
"""Ranges of letters in the fingerprint: Latin, Greek and Cyrillic, and punctuation inside words."""


def terms(text: str) -> dict[str, int]:
    """Returns the grams and the marked lemmas of `text` and how often each occurs."""
    return grams(text) | lemmas(text)


def fingerprint() -> str:
    """Returns a hash of what `terms` makes of the letters of Latin, Greek and Cyrillic.

    Areas record it with their terms. When a release cuts words differently, or has other
    dictionaries, it changes, and upkeep makes the terms again.
    """
    letters = [chr(code) for first, last in _PROBED for code in range(first, last)]
    probe = " ".join(
        word for letter in letters for word in (f"ab{letter}cd", f"дж{letter}щю", letter * 2)
    )
    cut = [*sorted(terms(f"{probe} don't п'ять went пішла").items()), *sorted(STOP_WORDS)]
    return hashlib.sha256(repr((cut, simplemma.__version__)).encode()).hexdigest()[:16]
