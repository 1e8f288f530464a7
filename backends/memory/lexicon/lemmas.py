"""Reduces words to their lemmas by simplemma's dictionaries. Pure.

`went` and `go`, `кота` and `кіт` share a lemma, but hardly a gram. The script tells the language:
Cyrillic words are looked up in Ukrainian, others in English. Names, codes and unknown words stay as
they are.

Stop words are left out. However common `when` and `who` are, few memories contain them: by rarity
alone the question `When is…` would be most like a text that asks.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import islice
from pathlib import Path

from simplemma.strategies import DefaultStrategy

from backends.memory.lexicon.grams import is_cyrillic, normalise, spelled_words

MARK = "="
"""Begins every lemma, so that none equals a gram; no word contains it."""
LONGEST = 25
"""Letters of a word that is looked up. A longer one is a code, which would fill the cache, and
which costs a look-up for each of its parts.
"""
STOP_WORDS = frozenset(
    Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split()
)
"""Words that carry no meaning of their own, Ukrainian and English, normalised."""
_CACHED_WORDS = 50_000

_dictionaries = DefaultStrategy()


def lemmas(text: str, most: int | None = None) -> dict[str, int]:
    """Returns the marked lemmas of the words of `text` and how often each occurs.

    With `most`, only that many different words are looked up, the first ones, stop words aside.
    """
    counts = Counter(word for word in spelled_words(text) if word not in STOP_WORDS)
    found = (_lemma(word) for word, count in islice(counts.items(), most) for _ in range(count))
    return dict(Counter(MARK + lemma for lemma in found if lemma not in _stop_lemmas()))


def _lemma(word: str) -> str:
    return _looked_up(word) if len(word) <= LONGEST else normalise(word)


@lru_cache(_CACHED_WORDS)
def _looked_up(word: str) -> str:
    found = _dictionaries.get_lemma(word, "uk" if is_cyrillic(word) else "en")
    return normalise(found or word)  # dictionaries have capitals and stress marks


@lru_cache
def _stop_lemmas() -> frozenset[str]:
    return frozenset(map(_lemma, STOP_WORDS))
