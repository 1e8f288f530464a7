"""Cleans and cuts texts for prompts, posts and the database, and estimates their tokens. Pure."""

from __future__ import annotations

import re

BYTES_PER_TOKEN = 3
"""A low estimate: English takes about 4 bytes a token, Ukrainian 2 to 4, depending on the model."""
CUT = "…"
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def clean(text: str) -> str:
    """Returns `text` with NULs and lone surrogates replaced, which the database cannot store."""
    return _UNSTORABLE.sub("�", text)


def cut(text: str, chars: int) -> str:
    """Returns at most `chars` characters; a cut text ends in `…`."""
    return text if len(text) <= chars else text[: max(0, chars - len(CUT))] + CUT


def tokens_of(text: str) -> int:
    """Returns an estimate of the tokens of `text`, rather too high than too low."""
    return len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN + 1


def cut_to_tokens(text: str, tokens: int) -> str:
    """Returns the beginning of `text` within about `tokens`."""
    if tokens_of(text) <= tokens:
        return text
    kept = text.encode("utf-8", "replace")[: max(0, tokens - 1) * BYTES_PER_TOKEN].decode(
        "utf-8", "ignore"
    )
    return kept + CUT
