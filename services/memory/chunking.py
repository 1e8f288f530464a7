"""Cuts texts, and documents of the knowledge base, into overlapping chunks. Pure."""

from __future__ import annotations

import hashlib
from pathlib import PurePath

import markdown_it

from contracts.memory.background import DocumentChunk
from contracts.memory.settings import ChunkSettings
from services.memory.sections import sections

VERSION = 1
"""Raised whenever `sections`, `chunk` or `cut` cut some document differently."""
MARKDOWN = frozenset({".md", ".markdown"})

# Better places first: paragraphs, lines, sentences, clauses, words.
_SEPARATORS = ("\n\n", "\n", ". ", "! ", "? ", "… ", "; ", ", ", " ")


def chunk(text: str, size: ChunkSettings) -> list[str]:
    """Returns the chunks of `text`, each of at most `size.most` characters and none blank.

    It is cut at paragraphs, sentences or words.
    """
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


def rules(path: str, size: ChunkSettings) -> bytes:
    """Returns a fingerprint of the rules by which `cut` cuts a file with this path."""
    rule = (VERSION, markdown_it.__version__, size.most, size.overlap, _is_markdown(path))
    return hashlib.sha256(repr(rule).encode()).digest()[:8]


def cut(text: str, path: str, size: ChunkSettings, *, tree: str) -> list[DocumentChunk]:
    """Returns the chunks of a file, each with the path of headings above it."""
    chunks = []
    for section in sections(text, markdown=_is_markdown(path)):
        position = 0
        for part in chunk(section.text, size):
            position = max(section.text.find(part, position), position)
            line = section.line + section.text.count("\n", 0, position)
            content = f"{section.heading}\n{part}" if section.heading else part
            meta = {"path": path, "heading": section.heading, "line": line, "tree": tree}
            chunks.append(DocumentChunk(content, meta))
    return chunks


def _is_markdown(path: str) -> bool:
    return PurePath(path).suffix.lower() in MARKDOWN
