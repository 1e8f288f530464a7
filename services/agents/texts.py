"""Texts on their way into a prompt, a post or the database: cleaned, cut and estimated. Pure."""

from __future__ import annotations

import re

BYTES_PER_TOKEN = 3
"""A careful guess: English takes about four bytes a token, Ukrainian two to four, depending on the model."""
CUT = "…"
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def clean(text: str) -> str:
    """Returns `text` as every part of the product can hold it: NULs and lone surrogates replaced."""
    return _UNSTORABLE.sub("�", text)


def cut(text: str, chars: int) -> str:
    """Returns at most `chars` characters; what was cut off is marked."""
    return text if len(text) <= chars else text[: max(0, chars - len(CUT))] + CUT


def tokens_of(text: str) -> int:
    """Returns about how many tokens a model makes of `text`, rather too many than too few."""
    return len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN + 1


def cut_to_tokens(text: str, tokens: int) -> str:
    """Returns the beginning of `text` that is about so many tokens."""
    if tokens_of(text) <= tokens:
        return text
    kept = text.encode("utf-8", "replace")[: max(0, tokens - 1) * BYTES_PER_TOKEN].decode(
        "utf-8", "ignore"
    )
    return kept + CUT
