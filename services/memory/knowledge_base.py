"""Keeps the index of the knowledge base equal to its folders."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contracts.errors import Conflict
from contracts.events import EventLog
from contracts.memory.administration import RefusedFile, ReindexReport
from contracts.memory.background import (
    Document,
    DocumentFile,
    DocumentFolders,
    DocumentStore,
    JobLeases,
    UnreadableFile,
)
from contracts.memory.settings import ChunkSettings
from services.access.quotas import Quotas
from services.memory.chunking import cut, rules

LEASE_S = 600.0
SHARED = ""
"""The microdao_id of the tree that everybody sees."""


@dataclass
class _Run:
    """One run over one tree. `missing` are the documents whose file was not found so far."""

    microdao_id: str
    read_all: bool
    known: dict[str, Document]
    files: dict[str, tuple[Path, DocumentFile]] = field(default_factory=dict)
    missing: dict[str, Document] = field(default_factory=dict)
    report: ReindexReport = field(default_factory=ReindexReport)

    def moved(self, file_hash: bytes) -> Document | None:
        """Takes a document with this content out of `missing`: its file has another path now."""
        found = next(
            (path for path, document in self.missing.items() if document.file_hash == file_hash),
            None,
        )
        return self.missing.pop(found) if found is not None else None


class KnowledgeBase:
    """The use case behind `POST /kb/reindex`; implements Upkeep.

    A periodic run reads only files whose size or modification time changed; a run on call reads
    every file. A file that was read is cut again if its content or the rules of cutting differ from
    the indexed ones, so new rules reach unchanged files by a run on call.
    """

    name = "knowledge-base"

    def __init__(
        self,
        documents: DocumentStore,
        folders: DocumentFolders,
        leases: JobLeases,
        events: EventLog,
        *,
        shared: Path,
        interval_s: float,
        size: ChunkSettings,
        quotas: Quotas,
    ) -> None:
        self._documents = documents
        self._folders = folders
        self._leases = leases
        self._events = events
        self._shared = shared
        self._size = size
        self._quotas = quotas
        self._running = asyncio.Lock()
        self.interval_s = interval_s

    async def run(self) -> None:
        # The upkeep runner holds the lease.
        if not self._running.locked():
            async with self._running:
                await self._index_all(read_all=False)

    async def reindex(self, microdao_id: str | None) -> ReindexReport:
        """Updates the index from one microDAO's folders, or from all folders.

        Raises:
            Conflict: another run is in progress.
        """
        if self._running.locked() or not await self._leases.lease(self.name, LEASE_S):
            raise Conflict(
                "the knowledge base is being indexed: retry in a moment", retry_after_s=2
            )
        async with self._running:
            try:
                if microdao_id is None:
                    return await self._index_all(read_all=True)
                folders = (await self._folders.of_microdaos()).get(microdao_id, [])
                return await self._index_tree(microdao_id, folders, read_all=True)
            finally:
                await self._leases.release(self.name)

    async def forget(self, microdao_id: str) -> dict[str, int]:
        """Removes a microDAO's folders and documents; returns counts by kind.

        The folders go first, so that no run indexes them meanwhile.
        """
        async with self._running:
            files = 0
            for folder in (await self._folders.of_microdaos()).get(microdao_id, []):
                files += len((await self._folders.scan(folder))[0])
                await self._folders.remove(folder)
            documents = await self._documents.known(microdao_id)
            chunks = [
                await self._documents.remove(microdao_id, document)
                for document in documents.values()
            ]
        return {"kb_files": files, "kb_documents": len(documents), "kb_chunks": sum(chunks)}

    async def _index_all(self, *, read_all: bool) -> ReindexReport:
        report = await self._index_tree(SHARED, [self._shared], read_all=read_all)
        folders = await self._folders.of_microdaos()
        for microdao_id in sorted({*folders, *await self._documents.trees()} - {SHARED}):
            tree = await self._index_tree(
                microdao_id, folders.get(microdao_id, []), read_all=read_all
            )
            _join(report, tree)
        return report

    async def _index_tree(
        self, microdao_id: str, folders: Sequence[Path], *, read_all: bool
    ) -> ReindexReport:
        run = _Run(microdao_id, read_all, await self._documents.known(microdao_id))
        for folder in folders:
            found, refused = await self._folders.scan(folder)
            run.report.refused.extend(refused)
            for file in found:
                run.files.setdefault(file.path, (folder, file))
        run.report.files = len(run.files)
        run.missing = {
            path: document for path, document in run.known.items() if path not in run.files
        }
        for folder, file in run.files.values():
            await self._index_file(run, folder, file)
        for document in run.missing.values():
            await self._documents.remove(microdao_id, document)
        run.report.deleted += len(run.missing)
        self._announce(run)
        return run.report

    def _announce(self, run: _Run) -> None:
        report = run.report
        if report.added or report.changed or report.deleted or report.moved:
            self._events.emit(
                "memory.kb_indexed",
                microdao_id=run.microdao_id,
                refused=len(report.refused),
                **report.model_dump(exclude={"ok", "refused"}),
            )

    async def _index_file(self, run: _Run, folder: Path, file: DocumentFile) -> None:
        document = run.known.get(file.path)
        if document is not None and document.file == file and not run.read_all:
            run.report.unchanged += 1
            return
        if document is None and self._is_full(run):
            reason = "over the microDAO's quota of documents: remove some, or raise the quota"
            run.report.refused.append(RefusedFile(path=file.path, reason=reason))
            return
        try:
            text, file_hash = await self._folders.read(folder, file)
        except UnreadableFile as error:
            run.report.refused.append(RefusedFile(path=file.path, reason=str(error)))
            if document is not None:  # no longer readable: remove its indexed text
                run.missing[file.path] = document
            return
        digest = file_hash + rules(file.path, self._size)
        if document is None and (document := run.moved(file_hash)) is not None:
            # Its path comes first, because `save` finds a document by its path.
            await self._documents.touch(run.microdao_id, document, file, document.digest)
            run.report.moved += 1
            if document.digest == digest:
                return
        elif document is not None and document.digest == digest:
            await self._unchanged(run, document, file, digest)
            return
        tree = "microdao" if run.microdao_id else "shared"
        chunks = await asyncio.to_thread(cut, text, file.path, self._size, tree=tree)
        if (
            document is not None
            and document.file_hash == file_hash
            and await self._documents.chunks(run.microdao_id, document) == chunks
        ):
            await self._unchanged(run, document, file, digest)
            return
        run.report.chunks += await self._documents.save(run.microdao_id, file, digest, chunks)
        run.report.changed += document is not None
        run.report.added += document is None

    def _is_full(self, run: _Run) -> bool:
        limit = self._quotas.limit("documents", run.microdao_id) if run.microdao_id else None
        stored = len(run.known) - len(run.missing) + run.report.added
        return limit is not None and stored >= limit

    async def _unchanged(
        self, run: _Run, document: Document, file: DocumentFile, digest: bytes
    ) -> None:
        if (document.file, document.digest) != (file, digest):
            await self._documents.touch(run.microdao_id, document, file, digest)
        run.report.unchanged += document.file.path == file.path


def _join(report: ReindexReport, other: ReindexReport) -> None:
    for name in ("files", "added", "changed", "moved", "deleted", "unchanged", "chunks"):
        setattr(report, name, getattr(report, name) + getattr(other, name))
    report.refused.extend(other.refused)
