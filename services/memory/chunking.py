"""Cuts texts, and documents of the knowledge base, into overlapping chunks. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import markdown_it

from contracts.memory.background import DocumentChunk, UnreadableFile
from contracts.memory.documents import PLAIN, WITH_MARKDOWN, DocumentPart, kind_of
from contracts.memory.settings import ChunkSettings
from services.memory.sections import sections

VERSION = 1
"""Raised whenever `sections`, `chunk` or `cut` cut some document differently."""

MAX_CHUNKS = 20_000
"""Of one document."""
MIN_ROOM = 1 << 20
"""Characters that the chunks of any document may have; of a larger one, four times its text."""

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


def rules(path: str, size: ChunkSettings, conversion: str) -> bytes:
    """Returns a fingerprint of the rules by which a file with this path is converted and cut."""
    rule: tuple[object, ...] = (VERSION, markdown_it.__version__, size.most, size.overlap)
    rule += (kind_of(path) in WITH_MARKDOWN, *([] if kind_of(path) in PLAIN else [conversion]))
    return hashlib.sha256(repr(rule).encode()).digest()[:8]


def cut(
    parts: Sequence[DocumentPart], path: str, size: ChunkSettings, *, tree: str
) -> list[DocumentChunk]:
    """Returns the chunks of a document, each with the path of headings above it.

    Raises UnreadableFile for more than MAX_CHUNKS, or for headings that are repeated so often that
    the chunks have several times the document's text.
    """
    room = max(MIN_ROOM, 4 * sum(len(part.text) for part in parts))
    chunks: list[DocumentChunk] = []
    for found in (found for part in parts for found in _cut(part, path, size, tree)):
        room -= len(found.content)
        if room < 0 or len(chunks) == MAX_CHUNKS:
            raise UnreadableFile("too many sections: divide it, or shorten its headings")
        chunks.append(found)
    return chunks


def _cut(part: DocumentPart, path: str, size: ChunkSettings, tree: str) -> Iterator[DocumentChunk]:
    kind = kind_of(path)
    for section in sections(part.text, markdown=kind in WITH_MARKDOWN):
        heading, position = section.heading, 0
        for text in chunk(section.text, size):
            position = max(section.text.find(text, position), position)
            line = section.line + section.text.count("\n", 0, position)
            place = {"line": line} if kind in PLAIN else {"page": part.page} if part.page else {}
            meta = {"path": path, "heading": heading, **place, "tree": tree}
            yield DocumentChunk(f"{heading}\n{text}" if heading else text, meta)
