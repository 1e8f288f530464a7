"""Brings the index of single files up to date."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cachetools import LRUCache

from contracts.events import EventLog
from contracts.memory.administration import RefusedFile, ReindexReport
from contracts.memory.background import (
    Document,
    DocumentChunk,
    DocumentFile,
    DocumentFolders,
    DocumentStore,
    UnreadableFile,
)
from contracts.memory.documents import MAX_DOCUMENTS, DocumentConverter, kind_of
from contracts.memory.settings import ChunkSettings
from services.memory.chunking import cut, rules

ATTEMPTS = 5
MAX_REMEMBERED = 10_000


@dataclass
class Run:
    """One run over one tree, or over one file of it.

    `missing` are the documents whose file was not found so far. `cut` holds what was
    converted and cut before, by the file's SHA-256.
    """

    microdao_id: str
    folders: Sequence[Path]
    read_all: bool
    known: dict[str, Document]
    limit: int = MAX_DOCUMENTS
    files: dict[str, tuple[Path, DocumentFile]] = field(default_factory=dict)
    missing: dict[str, Document] = field(default_factory=dict)
    cut: dict[bytes, Sequence[DocumentChunk]] = field(default_factory=dict)
    report: ReindexReport = field(default_factory=ReindexReport)

    @property
    def is_full(self) -> bool:
        """Whether no further document is allowed."""
        return len(self.known) - len(self.missing) + self.report.added >= self.limit

    def missing_with(self, file_hash: bytes) -> Document | None:
        """Returns a missing document with this content: its file may have another path now."""
        same = (each for each in self.missing.values() if each.file_hash == file_hash)
        return next(same, None)

    def refuse(self, path: str, reason: str) -> None:
        """Reports a file as refused."""
        self.report.refused.append(RefusedFile(path=path, reason=reason))


class Indexing:
    """Makes the rows of a file equal to the file.

    Runs, uploads and deletions of several replicas may write the rows of one file at a time.
    Whoever has written them looks at the file afterwards, and starts over if it is another one: the
    last one who writes rows has seen the last file. Nobody waits for a lock meanwhile.
    """

    def __init__(
        self,
        documents: DocumentStore,
        folders: DocumentFolders,
        converter: DocumentConverter,
        events: EventLog,
        size: ChunkSettings,
    ) -> None:
        self.documents = documents
        self.folders = folders
        self._converter = converter
        self.events = events
        self._size = size
        self._refused: LRUCache[tuple[str, DocumentFile], str] = LRUCache(MAX_REMEMBERED)
        """Why files were refused, so that periodic runs do not convert them again and again."""

    async def file(self, run: Run, folder: Path, file: DocumentFile) -> None:
        """Indexes a file, as `run.report` says then."""
        document = run.known.get(file.path)
        if document is not None and document.file == file and not run.read_all:
            run.report.unchanged += 1
            return
        if await self._bring(run, folder, file, document):
            await self.settle(run, file.path, (folder, file))

    async def settle(self, run: Run, path: str, seen: tuple[Path, DocumentFile] | None) -> None:
        """Checks rows that were written for the file as it was `seen`, or removed for none.

        A file that changes all the time is left to the next run.
        """
        for _ in range(ATTEMPTS):
            found = await self.folders.find(run.folders, path)
            if found == seen:
                return
            document = await self.documents.find(run.microdao_id, path)
            if found is not None:
                await self._bring(run, *found, document)
                document = run.missing.pop(path, None)
            if document is not None:
                await self.documents.remove(run.microdao_id, document)
            seen = found

    async def _bring(
        self, run: Run, folder: Path, file: DocumentFile, document: Document | None
    ) -> bool:
        """Indexes a file once; returns whether rows were written."""
        if document is None and run.is_full:
            reason = "over the microDAO's quota of documents: remove some, or raise the quota"
            run.refuse(file.path, reason)
            return False
        try:
            return await self._index(run, folder, file, document)
        except UnreadableFile as error:
            run.refuse(file.path, str(error))
            if document is not None and not error.for_now:
                run.missing[file.path] = document  # its indexed text is removed
        return False

    async def _index(
        self, run: Run, folder: Path, file: DocumentFile, document: Document | None
    ) -> bool:
        began = time.monotonic()
        if not run.read_all and (reason := self._refused.get((run.microdao_id, file))):
            raise UnreadableFile(reason)
        data, file_hash = await self.folders.read(folder, file)
        digest = file_hash + rules(file.path, self._size, self._converter.version)
        if (
            document is None
            and (found := run.missing_with(file_hash)) is not None
            # Its path comes first, because `save` finds a document by its path.
            and await self.documents.touch(run.microdao_id, found, file, found.digest)
        ):
            document = run.missing.pop(found.file.path)
            run.report.moved += 1
            if document.digest == digest:
                return True
        if document is None or document.digest != digest:
            chunks = run.cut.get(file_hash) or await self._cut(run, file, data)
            if (
                document is None
                or document.file_hash != file_hash
                or await self.documents.chunks(run.microdao_id, document) != chunks
            ):
                added = await self.documents.save(run.microdao_id, file, digest, chunks)
                run.report.chunks += added
                run.report.changed += document is not None
                run.report.added += document is None
                self.events.emit(
                    "memory.document_indexed",
                    microdao_id=run.microdao_id,
                    version=file_hash.hex(),
                    kind=kind_of(file.path),
                    chunks=len(chunks),
                    new_chunks=added,
                    pages=chunks[-1].meta.get("page") if chunks else None,
                    seconds=round(time.monotonic() - began, 3),
                )
                return True
        is_new = (document.file, document.digest) != (file, digest)
        if is_new and not await self.documents.touch(run.microdao_id, document, file, digest):
            return await self._index(run, folder, file, None)  # it was removed meanwhile
        run.report.unchanged += document.file.path == file.path
        return is_new

    async def cut(self, microdao_id: str, path: str, data: bytes) -> Sequence[DocumentChunk]:
        """Converts and cuts a file. Raises UnreadableFile."""
        parts = await self._converter.convert(path, data)
        tree = "microdao" if microdao_id else "shared"
        return await asyncio.to_thread(cut, parts, path, self._size, tree=tree)

    async def _cut(self, run: Run, file: DocumentFile, data: bytes) -> Sequence[DocumentChunk]:
        try:
            return await self.cut(run.microdao_id, file.path, data)
        except UnreadableFile as error:
            if not error.for_now:
                self._refused[run.microdao_id, file] = str(error)
            raise
