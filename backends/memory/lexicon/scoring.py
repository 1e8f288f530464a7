"""Weighs a question's grams, or its lemmas, and scores their records by BM25. Pure.

As array operations; grams and lemmas are scored apart, each by their own weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.memory.lexicon.postings import Records, hashed

K1 = 1.2
B = 0.75
"""BM25's usual constants (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009)."""
MAX_QUERY_GRAMS = 32
DENSE_RANGE = 2_000_000
"""Up to this distance between chunk numbers their sums are counted in an array, without sorting."""


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
        QueryGram(gram, rarity(documents, frequencies.get(gram, 0)) * _repeated(count))
        for gram, count in question.items()
    ]
    return sorted(weighed, key=lambda entry: (-entry.weight, entry.gram))[:limit]


def ceiling(question: list[QueryGram]) -> float:
    """Returns the BM25 of a chunk of average length that holds every gram of the question once."""
    return sum(entry.weight for entry in question)


def _repeated(count: int) -> float:
    """Returns the factor of a gram that the question repeats: more than 1, less than `count`."""
    return 1 + math.log(count)


@dataclass(frozen=True, slots=True)
class Scored:
    """Chunks by falling score; `ceiling` as in LexicalAnswer."""

    chunks: list[int]
    scores: list[float]
    ceiling: float


def score(
    records: Records,
    question: Mapping[str, int],
    *,
    chunks: int,
    length: int,
    allowed: npt.NDArray[np.uint32] | None,
    limit: int,
) -> Scored:
    """Returns at most `limit` chunks, best first.

    Args:
        records: every record of the question's grams; others are ignored.
        question: the question's grams and how often it has each.
        chunks: number of chunks that are searched.
        length: sum of their lengths, in grams.
        allowed: chunks that pass the filters; None when all do.
        limit: how many to return.
    """
    names = {hashed(gram): gram for gram in question}
    numbers = np.array(sorted(names), np.uint32)
    records, places = _matching(records, numbers)
    found = np.bincount(places, minlength=len(numbers)).tolist()
    frequencies = {names[int(number)]: count for number, count in zip(numbers, found, strict=True)}
    weighed = weigh({gram: question[gram] for gram in frequencies}, frequencies, chunks)
    weights = {entry.gram: entry.weight for entry in weighed}
    by_place = np.array([weights.get(names[int(number)], 0.0) for number in numbers])
    if allowed is not None:
        passing = np.isin(records["chunk"], allowed)
        records, places = records[passing], places[passing]
    if not len(records):
        return Scored([], [], ceiling(weighed))
    gains = by_place[places] * _saturation(records, length / chunks if chunks else 1.0)
    scored, totals = _summed(records["chunk"], gains)
    best = np.argsort(-totals, kind="stable")[:limit]
    return Scored(scored[best].tolist(), totals[best].tolist(), ceiling(weighed))


def _summed(
    chunks: npt.NDArray[np.uint32], gains: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64]]:
    """Returns each chunk once, with the sum of its gains."""
    first = int(chunks.min())
    if int(chunks.max()) - first < DENSE_RANGE:
        sums: npt.NDArray[np.float64] = np.bincount(chunks - np.uint32(first), gains).astype(
            np.float64, copy=False
        )
        places = np.flatnonzero(sums)
        return (places + first).astype(np.uint32), sums[places]
    found, position = np.unique(chunks, return_inverse=True)
    return found, np.bincount(position, gains, minlength=len(found)).astype(np.float64, copy=False)


def _matching(
    records: Records, numbers: npt.NDArray[np.uint32]
) -> tuple[Records, npt.NDArray[np.intp]]:
    if not len(numbers):
        return records[:0], np.empty(0, np.intp)
    asked = np.ascontiguousarray(records["gram"])
    places = np.minimum(np.searchsorted(numbers, asked), len(numbers) - 1)
    matching = numbers[places] == asked
    return records[matching], places[matching]


def _saturation(records: Records, average: float) -> npt.NDArray[np.float64]:
    counts = records["count"].astype(np.float64)
    dampening = K1 * (1 - B + B * records["length"] / average)
    saturated: npt.NDArray[np.float64] = counts * (K1 + 1) / (counts + dampening)
    return saturated
