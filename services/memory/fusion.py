"""One ranking from the arms' candidates, whatever their tier. Pure.

Each arm's score becomes evidence between 0 and 1 that means the same for every question:

- dense, `d`: the cosine above that of unrelated texts, as a part of the distance up to 1.
- lexical, `g`: the part of the question that the text contains (BM25 divided by
  `LexicalAnswer.ceiling`, so rare grams count more), less half of the tenth-best text's part, and
  nothing for parts that are due to chance.
- words, `w`: the same by lemmas, which know that went and go are one word, less all of the
  tenth-best text's part: a text has a whole word by chance more often than many of its grams.

`score = 1 − (1 − d)(1 − 0.4·g)(1 − 0.3·w)`: evidence adds up, missing evidence takes nothing away.
A question in another language or in other words than the text has few terms in common with any
text: `g` and `w` are 0 for all, and the dense order holds. A name or a code in the question occurs
in a few texts, which rise.

At the end recent items gain a little, which decides between equals. 1 would be the question's own
text written just now, 0 a text as far away as any unrelated one, without a common word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from contracts.memory.ports import Arm, ItemCandidate
from contracts.memory.settings import FusionSettings

BACKGROUND_RANK = 10
BACKGROUND_SHARE = 0.5
WORD_BACKGROUND_SHARE = 1.0
CHANCE = 0.1
CERTAIN = 0.4
"""Parts of a question that any text may have by chance, and that no unrelated text has."""
_DECIDING: tuple[Arm, ...] = ("dense", "lexical", "words", "recent")
"""The arms whose ranks decide between equal scores, in this order."""
_DAY_S = 86_400.0


DEFAULT = FusionSettings()


@dataclass(frozen=True, slots=True)
class FusedItem:
    """An item after fusion. `score` is in 0..1; `ranks` has its rank, from 1, in each arm."""

    id: str
    score: float
    ranks: Mapping[str, int] = field(default_factory=dict)


def fuse(
    arms: Mapping[Arm, Sequence[ItemCandidate]],
    lexical_ceiling: float,
    words_ceiling: float = 0.0,
    *,
    now: datetime,
    limit: int,
    settings: FusionSettings = DEFAULT,
) -> list[FusedItem]:
    """Returns at most `limit` items, best first.

    `arms` has the candidates of each arm that answered, best first; the first of an item's entries
    in one arm counts. The ceilings are LexicalAnswer's.
    """
    ranked = {arm: _best(found) for arm, found in arms.items()}
    dense = _dense_evidence(ranked.get("dense", []), settings.unrelated)
    lexical = _lexical_evidence(ranked.get("lexical", []), lexical_ceiling, BACKGROUND_SHARE)
    words = _lexical_evidence(ranked.get("words", []), words_ceiling, WORD_BACKGROUND_SHARE)
    # An item that the dense arm did not return is at most as near as the last one that it did.
    farthest = min(dense.values(), default=0.0)
    items = {candidate.id: candidate for found in ranked.values() for candidate in found}
    ranks = {
        arm: {candidate.id: rank for rank, candidate in enumerate(found, 1)}
        for arm, found in ranked.items()
    }
    fused = [
        FusedItem(
            id=name,
            score=_combined(
                dense.get(name, farthest), lexical.get(name, 0.0), words.get(name, 0.0), settings
            )
            * _freshness(item, now, settings),
            ranks={arm: by[name] for arm, by in ranks.items() if name in by},
        )
        for name, item in items.items()
    ]
    fused.sort(
        key=lambda entry: (
            -entry.score,
            *(entry.ranks.get(arm, len(items) + 1) for arm in _DECIDING),
            entry.id,
        )
    )
    return fused[:limit]


def _best(found: Sequence[ItemCandidate]) -> list[ItemCandidate]:
    first: dict[str, ItemCandidate] = {}
    for candidate in found:
        first.setdefault(candidate.id, candidate)
    return list(first.values())


def _dense_evidence(found: Sequence[ItemCandidate], unrelated: float) -> dict[str, float]:
    return {candidate.id: dense_evidence(candidate.score, unrelated) for candidate in found}


def dense_evidence(cosine: float, unrelated: float) -> float:
    """Returns the cosine above that of unrelated texts, as a part of the distance up to 1."""
    return _within_unit((cosine - unrelated) / (1 - unrelated))


def _lexical_evidence(
    found: Sequence[ItemCandidate], ceiling: float, share: float
) -> dict[str, float]:
    if ceiling <= 0:
        return {}
    covered = {candidate.id: _within_unit(candidate.score / ceiling) for candidate in found}
    by_rank = sorted(covered.values(), reverse=True)
    background = by_rank[BACKGROUND_RANK - 1] * share if len(by_rank) >= BACKGROUND_RANK else 0.0
    return {
        name: (part - background) * _beyond_chance(part)
        for name, part in covered.items()
        if part > background
    }


def _beyond_chance(part: float) -> float:
    """Returns 0 below CHANCE, 1 above CERTAIN, and a smooth step between them."""
    step = _within_unit((part - CHANCE) / (CERTAIN - CHANCE))
    return step * step * (3 - 2 * step)


def _combined(dense: float, lexical: float, words: float, settings: FusionSettings) -> float:
    by_terms = (1 - settings.lexical_weight * lexical) * (1 - settings.word_weight * words)
    return 1 - (1 - dense) * by_terms


def _freshness(item: ItemCandidate, now: datetime, settings: FusionSettings) -> float:
    age_days = max(0.0, (now - item.created_at).total_seconds() / _DAY_S)
    decay: float = 0.5 ** (age_days / settings.half_life_days)
    return 1 - settings.recency_weight * (1 - decay)


def _within_unit(value: float) -> float:
    return min(1.0, max(0.0, value))
