"""Keeps the index of the knowledge base equal to its folders."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import Conflict, DaarionError, DatabaseUnavailable
from contracts.events import EventLog
from contracts.memory.administration import RefusedFile, ReindexReport
from contracts.memory.background import JobLeases
from contracts.memory.documents import MAX_DOCUMENTS
from services.access.quotas import Quotas
from services.memory.indexing import Indexing, Run

LEASE_S = 600.0
SHARED = ""
"""The microdao_id of the tree that everybody sees."""


class KnowledgeBase:
    """The use case behind `POST /kb/reindex`; implements Upkeep.

    A periodic run reads only files whose size or modification time changed; a run on call reads
    every file. A file that was read is cut again if its content or the rules of cutting differ from
    the indexed ones, so new rules reach unchanged files by a run on call.
    """

    name = "knowledge-base"

    def __init__(
        self,
        indexing: Indexing,
        leases: JobLeases,
        events: EventLog,
        *,
        shared: Path,
        interval_s: float,
        quotas: Quotas,
    ) -> None:
        self._indexing = indexing
        self._documents = indexing.documents
        self._folders = indexing.folders
        self._leases = leases
        self._events = events
        self._shared = shared
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
                found = (await self._folders.of_microdaos()).get(microdao_id, [])
                return await self._index_tree(microdao_id, found, read_all=True)
            finally:
                await self._leases.release(self.name)

    async def forget(self, microdao_id: str) -> dict[str, int]:
        """Removes a microDAO's folders and documents; returns counts by kind.

        The folders go first: a run that indexes them meanwhile looks for each file afterwards, and
        removes the rows of one that is gone.
        """
        files = 0
        for folder in (await self._folders.of_microdaos()).get(microdao_id, []):
            files += len((await self._folders.scan(folder))[0])
            await self._folders.remove(folder)
        documents = await self._documents.known(microdao_id)
        chunks = [
            await self._documents.remove(microdao_id, document) for document in documents.values()
        ]
        return {"kb_files": files, "kb_documents": len(documents), "kb_chunks": sum(chunks)}

    async def _index_all(self, *, read_all: bool) -> ReindexReport:
        report, found = ReindexReport(), {**await self._folders.of_microdaos()}
        for microdao_id in sorted({SHARED, *found, *await self._documents.trees()}):
            folders = found.get(microdao_id, []) if microdao_id else [self._shared]
            with self._going_on(report, microdao_id, "."):
                _join(report, await self._index_tree(microdao_id, folders, read_all=read_all))
        return report

    @contextmanager
    def _going_on(self, report: ReindexReport, microdao_id: str, path: str) -> Iterator[None]:
        """Reports a failure as refused, so that what comes after `path` has its turn."""
        try:
            yield
        except DatabaseUnavailable:
            raise
        except DaarionError as error:
            report.refused.append(RefusedFile(path=path, reason=f"not now: {error}"))
            self._events.emit("memory.kb_failed", microdao_id=microdao_id, error=error.type)

    async def _index_tree(
        self, microdao_id: str, folders: Sequence[Path], *, read_all: bool
    ) -> ReindexReport:
        limit = self._quotas.limit("documents", microdao_id) if microdao_id else None
        if microdao_id:  # an upload may make the first of them meanwhile
            folders = list(dict.fromkeys([self._folders.home(microdao_id), *folders]))
        run = Run(
            microdao_id,
            folders,
            read_all,
            known=await self._documents.known(microdao_id),
            limit=MAX_DOCUMENTS if limit is None else min(limit, MAX_DOCUMENTS),
        )
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
            with self._going_on(run.report, microdao_id, file.path):
                await self._indexing.file(run, folder, file)
        for path, document in list(run.missing.items()):
            with self._going_on(run.report, microdao_id, path):
                await self._documents.remove(microdao_id, document)
                await self._indexing.settle(run, path, run.files.get(path))
                run.report.deleted += path in run.missing
        self._announce(run)
        return run.report

    def _announce(self, run: Run) -> None:
        report = run.report
        if report.added or report.changed or report.deleted or report.moved:
            self._events.emit(
                "memory.kb_indexed",
                microdao_id=run.microdao_id,
                refused=len(report.refused),
                **report.model_dump(exclude={"ok", "refused"}),
            )


def _join(report: ReindexReport, other: ReindexReport) -> None:
    for name in ("files", "added", "changed", "moved", "deleted", "unchanged", "chunks"):
        setattr(report, name, getattr(report, name) + getattr(other, name))
    report.refused.extend(other.refused)
