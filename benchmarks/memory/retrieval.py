"""Recall, nDCG, the table of slices, and the demands on them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.memory.gold.dataset import GoldQuery

CUTOFF = 10
SLICES = {
    "all": "all",
    "uk": "Ukrainian",
    "en": "English",
    "cross": "cross-language",
    "no-shared-word": "no shared word",
    "inflected": "inflected",
    "plain": "one turn",
    "follow-up": "follow-up",
    "speaker": "names a speaker",
    "date": "names a date",
    "when": "asks when",
    "several": "several turns",
}
SMALLEST_SLICE = 20
TOLERANCE = 0.01
WORD_BM25_AT_MOST = 0.6

Rankings = Mapping[str, Sequence[str]]
"""Ids of the items found, best first, by query id."""


@dataclass(frozen=True)
class Quality:
    """Means over a slice's questions."""

    recall: float
    ndcg: float


def measured(queries: Sequence[GoldQuery], rankings: Rankings) -> dict[str, Quality]:
    """Returns the quality of each slice that has enough questions."""
    found = {}
    for name, members in members_of_slices(queries).items():
        if len(members) >= SMALLEST_SLICE:
            found[name] = Quality(
                fmean(recall(rankings[query.id], query.relevant) for query in members),
                fmean(ndcg(rankings[query.id], query.relevant) for query in members),
            )
    return found


def members_of_slices(queries: Sequence[GoldQuery]) -> dict[str, list[GoldQuery]]:
    """Returns the questions of each slice."""
    return {
        name: [query for query in queries if name == "all" or name in query.slices]
        for name in SLICES
    }


def recall(ranked: Sequence[str], relevant: frozenset[str]) -> float:
    """The part of the answers among the first CUTOFF."""
    return len(relevant.intersection(ranked[:CUTOFF])) / len(relevant)


def ndcg(ranked: Sequence[str], relevant: frozenset[str]) -> float:
    """Normalised discounted cumulative gain at CUTOFF, every answer worth the same."""
    gained = sum(
        1 / math.log2(place + 2) for place, name in enumerate(ranked[:CUTOFF]) if name in relevant
    )
    ideal = sum(1 / math.log2(place + 2) for place in range(min(CUTOFF, len(relevant))))
    return gained / ideal


def table(arms: Mapping[str, Mapping[str, Quality]], counts: Mapping[str, int]) -> str:
    """Returns the table: a row an arm, a column a slice, recall@10 / nDCG@10."""
    columns = [name for name in SLICES if name in next(iter(arms.values()))]
    head = ["recall@10 / nDCG@10", *(SLICES[name] for name in columns)]
    rows = [["questions", *(str(counts[name]) for name in columns)]]
    rows += [
        [arm, *(f"{found[name].recall:.3f} / {found[name].ndcg:.3f}" for name in columns)]
        for arm, found in arms.items()
    ]
    widths = [max(len(line[place]) for line in (head, *rows)) for place in range(len(head))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in (head, *rows)
    ]
    return "\n".join(
        [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
    )


def complaints(
    arms: Mapping[str, Mapping[str, Quality]], fused: str, compared: Sequence[str]
) -> list[str]:
    """Returns unmet demands.

    The fused search may be at most TOLERANCE under the best arm in a slice, and must be above each
    arm over all questions.
    """
    said = []
    for name, quality in arms[fused].items():
        for measure in ("recall", "ndcg"):
            best = max(getattr(arms[arm][name], measure) for arm in compared)
            reached = getattr(quality, measure)
            fused_is = f"{SLICES[name]}: fused {measure} {reached:.3f} is"
            if reached < best - TOLERANCE:
                said.append(f"{fused_is} under the best arm's {best:.3f}")
            if name == "all" and reached <= best:
                said.append(f"{fused_is} not above the best arm's {best:.3f}")
    return said
