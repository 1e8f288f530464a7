"""The language of a text, and the apologies for runs without an answer."""

from __future__ import annotations

import re
from typing import Literal

from contracts.agents.blueprints import Language

Apology = Literal["failed", "empty", "late"]

MIN_LETTERS = 3
_CYRILLIC = re.compile("[\u0400-\u04ff]")
_LETTER = re.compile(r"[^\W\d_]")

APOLOGIES: dict[tuple[Apology, Language], str] = {
    ("failed", "uk"): (
        "Перепрошую, зараз не вдалося підготувати відповідь, "
        "спробуйте, будь ласка, ще раз трохи згодом."
    ),
    ("failed", "en"): (
        "Sorry, I could not prepare an answer just now, please try again a little later."
    ),
    ("late", "uk"): (
        "Перепрошую, підготувати відповідь вчасно не вдалося, спробуйте, будь ласка, ще раз."
    ),
    ("late", "en"): "Sorry, I could not finish my answer in time, please try again.",
    ("empty", "uk"): "Повідомлення порожнє, напишіть, будь ласка, чим я можу допомогти.",
    ("empty", "en"): "The message is empty, please write what I can help with.",
}


def language_of(text: str, default: Language) -> Language:
    """Returns the language of most letters of `text`; `default` when there are too few letters."""
    letters = len(_LETTER.findall(text))
    if letters < MIN_LETTERS:
        return default
    return "uk" if 2 * len(_CYRILLIC.findall(text)) >= letters else "en"


def apology(kind: Apology, language: Language) -> str:
    """Returns the apology that is posted in place of a reply."""
    return APOLOGIES[kind, language]
