"""BM25's weights of a question's grams. Pure; scoring.py uses them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

K1 = 1.2
B = 0.75
"""BM25's usual constants (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009)."""
MAX_QUERY_GRAMS = 32


@dataclass(frozen=True, slots=True)
class QueryGram:
    """One gram of a question; `weight` grows with its rarity and with its repetitions."""

    gram: str
    weight: float


def rarity(documents: int, frequency: int) -> float:
    """Returns BM25's inverse document frequency, which is never negative here."""
    frequency = min(frequency, documents)
    return math.log1p((documents - frequency + 0.5) / (frequency + 0.5))


def weigh(
    question: Mapping[str, int],
    frequencies: Mapping[str, int],
    documents: int,
    limit: int = MAX_QUERY_GRAMS,
) -> list[QueryGram]:
    """Returns at most `limit` grams to look for, rarest first.

    `question` are the question's `grams`; `frequencies` are the numbers of chunks with each gram,
    of `documents` chunks in all. Grams that occur nowhere have a weight and count in `ceiling`, so
    that a question about something unknown does not look answered.
    """
    weighed = [
        QueryGram(gram, rarity(documents, frequencies.get(gram, 0)) * _saturated(count))
        for gram, count in question.items()
    ]
    return sorted(weighed, key=lambda entry: (-entry.weight, entry.gram))[:limit]


def ceiling(question: list[QueryGram]) -> float:
    """Returns the BM25 of a chunk of average length that holds every gram of the question once."""
    return sum(entry.weight for entry in question)


def _saturated(count: int) -> float:
    """Returns the factor of a gram that the question repeats: more than 1, less than `count`."""
    return 1 + math.log(count)
