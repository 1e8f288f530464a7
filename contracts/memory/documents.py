"""Documents of the knowledge base: their kinds, and the port of their conversion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, Field

from contracts.shapes import Frozen
from contracts.values import storable

MAX_DOCUMENTS = 100_000
"""Of one microDAO, or of the shared tree."""

DocumentKind = Literal["text", "markdown", "html", "docx", "pdf"]

_KINDS: dict[str, DocumentKind] = {
    ".txt": "text", ".rst": "text", ".md": "markdown", ".markdown": "markdown",
    ".html": "html", ".htm": "html", ".docx": "docx", ".pdf": "pdf",
}  # fmt: skip
PLAIN: frozenset[DocumentKind | None] = frozenset({"text", "markdown"})
"""Kinds that are read as they are, so that their lines can be named."""
WITH_MARKDOWN: frozenset[DocumentKind | None] = frozenset({"markdown", "html", "docx"})
"""Kinds whose parts are Markdown."""
SUFFIXES = ", ".join(_KINDS)


def kind_of(path: str) -> DocumentKind | None:
    """Returns the kind that the path's suffix names, or None."""
    return _KINDS.get(PurePath(path).suffix.lower())


class DocumentPart(Frozen):
    """A page of a document (from 1), or the whole text of one without pages.

    `heading` is the path of headings under which it begins, if the text does not have them.
    """

    text: Annotated[str, AfterValidator(storable)]
    page: Annotated[int, Field(ge=1)] | None = None
    heading: Annotated[str, AfterValidator(storable)] = ""


class DocumentConverter(Protocol):
    """Reads text out of files of every kind."""

    def rules(self, path: str) -> str:
        """Returns what the result depends on beside the file, such as versions of libraries."""

    async def convert(self, path: str, data: bytes) -> Sequence[DocumentPart]:
        """Returns the parts of a file, whose kind is that of its suffix.

        Raises:
            UnreadableFile: it is damaged, hostile, too large, protected, or has no text.
            Unavailable: it cannot be converted now.
        """
