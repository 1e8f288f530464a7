"""Documents of the knowledge base: kinds, wire shapes, and the port of their conversion."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from contracts.identity import Identifier, PageQuery, plain
from contracts.shapes import Frozen, Strict
from contracts.values import storable

MAX_DOCUMENTS = 100_000
"""Of one microDAO, or of the shared tree."""
MAX_NAME_BYTES = 255

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


def _path(value: str) -> str:
    for part in plain(value).split("/"):
        if not part or part.startswith(".") or len(part.encode()) > MAX_NAME_BYTES:
            raise ValueError(
                "a path below the microDAO's folder, such as handbook/rules.pdf: no part is empty, "
                f"begins with a dot, or is over {MAX_NAME_BYTES} bytes"
            )
    if kind_of(value) is None:
        raise ValueError(f"the suffix must be one of {SUFFIXES}")
    return value


DocumentPath = Annotated[
    str, StringConstraints(min_length=1, max_length=512), AfterValidator(_path)
]


class DocumentName(Strict):
    """Query string of `PUT` and `DELETE /documents`."""

    microdao_id: Identifier
    path: DocumentPath


class DocumentsFilter(PageQuery):
    """Query string of `GET /documents`, in order of paths; with `path` that document alone."""

    microdao_id: Identifier
    path: DocumentPath | None = None
    cursor: Annotated[str, StringConstraints(max_length=4_096), AfterValidator(storable)] = ""


class StoredDocument(BaseModel):
    """An indexed document. `version` is the SHA-256 of the file, `pages` the last one with text.

    `waiting` of the `chunks` are found by words only, until they are embedded.
    """

    path: str
    version: str
    size: int
    indexed_at: datetime
    chunks: int
    waiting: int
    pages: int | None = None


class DocumentAnswer(StoredDocument):
    """Answer of `PUT /documents`."""

    outcome: Literal["added", "changed", "unchanged"]


class DocumentPart(Frozen):
    """A page of a document (from 1), or the whole text of one without pages."""

    text: Annotated[str, AfterValidator(storable)]
    page: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class DocumentConverter(Protocol):
    """Reads text out of files of every kind."""

    version: str
    """Of the libraries that convert what is not plain."""

    async def convert(self, path: str, data: bytes) -> Sequence[DocumentPart]:
        """Returns the parts of a file, whose kind is that of its suffix.

        Raises UnreadableFile where it is damaged, hostile, too large, protected, or has no text;
        and for now, where it cannot be converted at present.
        """
