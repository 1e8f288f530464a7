"""BM25 by its definition, one text at a time; the product computes the same over arrays."""

from __future__ import annotations

from collections.abc import Mapping

from backends.memory.lexicon.scoring import K1, B, QueryGram


def length(counts: Mapping[str, int]) -> int:
    """Returns the length of a text in grams."""
    return sum(counts.values())


def bm25(question: list[QueryGram], counts: Mapping[str, int], average_length: float) -> float:
    """Returns the BM25 of a text with these gram `counts`; `average_length` is over all texts."""
    relative = length(counts) / average_length if average_length > 0 else 1.0
    dampening = K1 * (1 - B + B * relative)
    found = ((entry.weight, counts.get(entry.gram, 0)) for entry in question)
    return sum(weight * count * (K1 + 1) / (count + dampening) for weight, count in found if count)
