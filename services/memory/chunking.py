"""Cuts a long text into overlapping chunks at paragraphs, sentences or words. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# Better places first: paragraphs, lines, sentences, clauses, words.
_SEPARATORS = ("\n\n", "\n", ". ", "! ", "? ", "… ", "; ", ", ", " ")


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """Bounds in characters. A chunk repeats `overlap` characters of the chunk before."""

    most: int
    overlap: int


def chunk(text: str, size: ChunkSize) -> list[str]:
    """Returns the chunks of `text`, each of at most `size.most` characters and none blank."""
    text = text.strip()
    chunks: list[str] = []
    start = 0
    while len(text) - start > size.most:
        end = _end(text, start, size.most)
        chunks.append(text[start:end].strip())
        start = _restart(text, start, end, size.overlap)
    chunks.append(text[start:].strip())
    return [part for part in chunks if part]


def _end(text: str, start: int, most: int) -> int:
    """Returns the last of the best places to cut in the second half of the window."""
    for separator in _SEPARATORS:
        found = text.rfind(separator, start + most // 2, start + most)
        if found > 0:
            return found + len(separator)
    return start + most


def _restart(text: str, start: int, end: int, overlap: int) -> int:
    """Returns where the next chunk begins: at a word in the overlap before `end`, after `start`."""
    earliest = max(start + 1, end - overlap)
    space = text.find(" ", earliest, end)
    return space + 1 if space >= 0 else end
