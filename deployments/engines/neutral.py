"""Removes from vectors what all texts share and what all texts of one language share.

In a multilingual model's vectors the first part makes unrelated texts look alike (a cosine of 0.7
to 0.8 with E5); the second ranks every text in the question's language above the answer in the
other one. Both are means over texts, so they are measured once, on parallel sentences, and
subtracted (Libovický, Rosa and Fraser, On the Language Neutrality of Pre-trained Multilingual
Representations, 2020). The sentences are joined by twos and threes: the parts depend on length,
and single short sentences measure them badly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

LANGUAGE_SHARE = 0.7
"""Share of the language's part that is removed; the rest decides between equals."""
SENTENCES = Path(__file__).with_name("parallel_texts.tsv")

_CYRILLIC = re.compile("[\u0400-\u04ff]")
_LETTER = re.compile(r"[^\W\d_]")
_LENGTHS = (2, 3)
_EVERY = 2
_STEP = 11


class LanguageParts:
    """The common part and half the difference between the two languages, measured on one model.

    A text's language is the share of Cyrillic among its letters, so mixed texts lie in between.
    """

    def __init__(self, cyrillic: Vector, latin: Vector) -> None:
        self._common = (cyrillic + latin) / 2
        self._language = LANGUAGE_SHARE * (cyrillic - latin) / 2

    @classmethod
    def measured(cls, encode: Callable[[list[str]], Vector]) -> LanguageParts:
        """Measures a model. `encode` returns one unit vector a row for passages."""
        cyrillic, latin = joined_sentences()
        return cls(encode(cyrillic).mean(axis=0), encode(latin).mean(axis=0))

    def without(self, text: str, vector: Vector) -> Vector:
        """Returns the unit vector of `text` without both parts."""
        rest = vector - self._common - (2 * cyrillic_share(text) - 1) * self._language
        length = float(np.linalg.norm(rest))
        return np.asarray(rest / length if length > 0 else vector, dtype="<f4")


def joined_sentences() -> tuple[list[str], list[str]]:
    """Returns passages of two and three sentences in Ukrainian, and the same in English."""
    rows = [line.split("\t") for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    spans = [
        [(start + _STEP * place) % len(rows) for place in range(count)]
        for count in _LENGTHS
        for start in range(0, len(rows), _EVERY)
    ]
    ukrainian, english = (
        [" ".join(rows[row][column] for row in span) for span in spans] for column in (0, 1)
    )
    return ukrainian, english


def cyrillic_share(text: str) -> float:
    """Returns the share of Cyrillic among the letters of `text`; 0.5 without letters."""
    letters = len(_LETTER.findall(text))
    return len(_CYRILLIC.findall(text)) / letters if letters else 0.5
