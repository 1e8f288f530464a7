"""Cuts a document of the knowledge base into chunks. Pure."""

from __future__ import annotations

import hashlib
from pathlib import PurePath

import markdown_it

from contracts.memory.background import DocumentChunk
from services.memory.chunking import ChunkSize, chunk
from services.memory.sections import sections

VERSION = 1
"""Raised whenever `sections`, `chunk` or `cut` cut some document differently."""
MARKDOWN = frozenset({".md", ".markdown"})


def rules(path: str, size: ChunkSize) -> bytes:
    """Returns a fingerprint of the rules by which `cut` cuts a file with this path."""
    rule = (VERSION, markdown_it.__version__, size.most, size.overlap, _is_markdown(path))
    return hashlib.sha256(repr(rule).encode()).digest()[:8]


def cut(text: str, path: str, size: ChunkSize, *, tree: str) -> list[DocumentChunk]:
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
