"""A tool's own error text, made fit to be shown."""

from __future__ import annotations

import re

MAX_CHARS = 300
_PATH = re.compile(r"(?<![\w/:])/(?:[\w.@+~-]+/)+[\w.@+~-]*")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


def shown_error(text: str) -> str:
    """Returns the text on one line, bounded, without file paths and memory addresses."""
    printable = "".join(
        character if character.isprintable() else " " for character in text[: 4 * MAX_CHARS]
    )
    return _ADDRESS.sub("…", _PATH.sub("…", " ".join(printable.split())))[:MAX_CHARS]
