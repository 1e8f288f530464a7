"""Keeps the index of the knowledge base in line with its folders."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends.memory.areas import SHARED
from backends.memory.document_files import (
    KbFile,
    UnreadableFile,
    microdao_folders,
    read,
    scan,
    sections,
)
from backends.memory.documents import Document, DocumentChunk, KbDocuments
from contracts.errors import Conflict
from contracts.events import EventLog
from contracts.memory.api import RefusedFile, ReindexReport
from contracts.memory.ports import Leases

LEASE_S = 600.0
MARKDOWN = frozenset({".md", ".markdown"})


@dataclass
class _Run:
    """One run over one tree. `gone` are the documents whose file was not met (yet)."""

    microdao_id: str
    thorough: bool
    known: dict[str, Document]
    files: dict[str, tuple[Path, KbFile]] = field(default_factory=dict)
    gone: dict[str, Document] = field(default_factory=dict)
    report: ReindexReport = field(default_factory=ReindexReport)

    def moved(self, file_hash: bytes) -> Document | None:
        """Takes a document of this content out of those that are gone: its file has another path now."""
        found = next(
            (path for path, document in self.gone.items() if document.hash == file_hash), None
        )
        return self.gone.pop(found) if found is not None else None


class KbIndex:
    """Implements KnowledgeBase, Upkeep and KnowledgeRemoval.

    `split` cuts a text into chunks, `grams` counts a text's grams. A run on the interval trusts size and modification
    time of a file; one on call compares contents.
    """

    name = "knowledge-base"

    def __init__(
        self,
        documents: KbDocuments,
        leases: Leases,
        events: EventLog,
        *,
        shared: Path,
        microdaos: Path,
        max_file_bytes: int,
        interval_s: float,
        split: Callable[[str], list[str]],
        grams: Callable[[str], Mapping[str, int]],
    ) -> None:
        self._documents = documents
        self._leases = leases
        self._events = events
        self._shared = shared
        self._microdaos = microdaos
        self._max_bytes = max_file_bytes
        self.interval_s = interval_s
        self._split = split
        self._grams = grams
        self._running = asyncio.Lock()

    async def run(self) -> None:
        """Looks at every folder."""
        if not self._running.locked():
            async with self._running:
                await self._every_tree(thorough=False)

    async def reindex(self, microdao_id: str | None) -> ReindexReport:
        """See the port."""
        if self._running.locked() or not await self._leases.take(self.name, LEASE_S):
            raise Conflict(
                "the knowledge base is being indexed just now: retry in a moment", retry_after_s=2
            )
        async with self._running:
            try:
                if microdao_id is None:
                    return await self._every_tree(thorough=True)
                return await self._tree(
                    microdao_id, (await self._folders()).get(microdao_id, []), thorough=True
                )
            finally:
                await self._leases.give_back(self.name)

    async def forget(self, microdao_id: str) -> dict[str, int]:
        """See KnowledgeRemoval. The folder goes first, so that nothing is indexed again."""
        async with self._running:
            folders = (await self._folders()).get(microdao_id, [])
            files = 0
            for folder in folders:
                files += len((await asyncio.to_thread(scan, folder, self._max_bytes))[0])
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            documents = await self._documents.known(microdao_id)
            chunks = [
                await self._documents.remove(microdao_id, document)
                for document in documents.values()
            ]
        return {"kb_files": files, "kb_documents": len(documents), "kb_chunks": sum(chunks)}

    async def _every_tree(self, *, thorough: bool) -> ReindexReport:
        report = await self._tree(SHARED, [self._shared], thorough=thorough)
        folders = await self._folders()
        named = {*folders, *await self._documents.trees()} - {SHARED}
        for microdao_id in sorted(named):
            _join(
                report,
                await self._tree(microdao_id, folders.get(microdao_id, []), thorough=thorough),
            )
        return report

    async def _folders(self) -> dict[str, list[Path]]:
        return await asyncio.to_thread(microdao_folders, self._microdaos)

    async def _tree(
        self, microdao_id: str, folders: Sequence[Path], *, thorough: bool
    ) -> ReindexReport:
        run = _Run(microdao_id, thorough, await self._documents.known(microdao_id))
        for folder in folders:
            found, refused = await asyncio.to_thread(scan, folder, self._max_bytes)
            run.report.refused.extend(refused)
            for file in found:
                run.files.setdefault(file.path, (folder, file))
        run.report.files = len(run.files)
        run.gone = {path: document for path, document in run.known.items() if path not in run.files}
        for root, file in run.files.values():
            await self._file(run, root, file)
        for document in run.gone.values():
            await self._documents.remove(microdao_id, document)
        run.report.deleted += len(run.gone)
        self._tell(run)
        return run.report

    def _tell(self, run: _Run) -> None:
        report = run.report
        if report.added or report.changed or report.deleted or report.moved:
            counts = report.model_dump(exclude={"ok", "refused"})
            self._events.emit(
                "memory.kb_indexed",
                microdao_id=run.microdao_id,
                refused=len(report.refused),
                **counts,
            )

    async def _file(self, run: _Run, root: Path, file: KbFile) -> None:
        document = run.known.get(file.path)
        if document is not None and document.file == file and not run.thorough:
            run.report.unchanged += 1
            return
        try:
            text, file_hash = await asyncio.to_thread(read, root, file, self._max_bytes)
        except UnreadableFile as error:
            run.report.refused.append(RefusedFile(path=file.path, reason=str(error)))
            if document is not None:  # what it said before is no longer what it says
                run.gone[file.path] = document
            return
        if document is not None and document.hash == file_hash:
            await self._same(run, document, file)
        elif document is None and (moved := run.moved(file_hash)) is not None:
            await self._documents.touch(run.microdao_id, moved, file)
            run.report.moved += 1
        else:
            chunks = await asyncio.to_thread(self._chunks, run.microdao_id, file, text)
            run.report.chunks += await self._documents.save(
                run.microdao_id, file, file_hash, chunks
            )
            run.report.changed += document is not None
            run.report.added += document is None

    async def _same(self, run: _Run, document: Document, file: KbFile) -> None:
        if document.file != file:
            await self._documents.touch(run.microdao_id, document, file)
        run.report.unchanged += 1

    def _chunks(self, microdao_id: str, file: KbFile, text: str) -> list[DocumentChunk]:
        chunks = []
        for section in sections(text, markdown=Path(file.path).suffix.lower() in MARKDOWN):
            position = 0
            for part in self._split(section.text):
                position = max(section.text.find(part, position), position)
                line = section.line + section.text.count("\n", 0, position)
                content = f"{section.heading}\n{part}" if section.heading else part
                tree = "microdao" if microdao_id else "shared"
                meta = {"path": file.path, "heading": section.heading, "line": line, "tree": tree}
                chunks.append(DocumentChunk(content, self._grams(content), meta))
        return chunks


def _join(report: ReindexReport, other: ReindexReport) -> None:
    for name in ("files", "added", "changed", "moved", "deleted", "unchanged", "chunks"):
        setattr(report, name, getattr(report, name) + getattr(other, name))
    report.refused.extend(other.refused)
