"""Documents that callers upload into their microDAO's knowledge base."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from contracts.errors import Conflict, InvalidRequest, NotFound, OverLimit, Overloaded, Unavailable
from contracts.identity import Page
from contracts.memory.background import Document, UnreadableFile
from contracts.memory.documents import (
    MAX_DOCUMENTS,
    DocumentAnswer,
    DocumentName,
    DocumentsFilter,
    StoredDocument,
)
from services.access.quotas import Quotas
from services.memory.indexing import Indexing, Run

AT_ONCE = 4
"""Uploads that a replica works on; others wait, with their bodies in memory."""
AT_ONCE_EACH = 1
"""Of them, those of one microDAO, whose slow conversions so delay nobody else's."""
MOST = 16
"""Uploads that a replica receives, keeps waiting, or works on; further ones are refused."""
MOST_EACH = 8
WAIT_S = 60.0


@dataclass(frozen=True)
class Documents:
    """The use cases behind `/documents`: an upload is a file in the microDAO's folder."""

    indexing: Indexing
    quotas: Quotas
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    turns: WeakValueDictionary[str, asyncio.Semaphore] = field(default_factory=WeakValueDictionary)
    under_way: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def admitted(self, microdao_id: str) -> AsyncIterator[None]:
        """Counts an upload, from before its body is read. Raises Overloaded at once."""
        if self.under_way.total() >= MOST or self.under_way[microdao_id] >= MOST_EACH:
            raise _overloaded()
        self.under_way[microdao_id] += 1
        try:
            yield
        finally:
            self.under_way.subtract([microdao_id])
            if not self.under_way[microdao_id]:
                del self.under_way[microdao_id]

    def most_bytes(self, path: str) -> int:
        """Returns how large a document of this path may be."""
        return self.indexing.folders.most_bytes(path)

    async def put(self, name: DocumentName, data: bytes) -> DocumentAnswer:
        """Stores and indexes a document. One that is refused leaves what was there before.

        Raises:
            InvalidRequest: it cannot be read as what its suffix says.
            OverLimit: a new document is over the microDAO's quota.
            Conflict: something else is in its place, or it was removed meanwhile.
            Overloaded: too many uploads wait.
            Unavailable: it cannot be converted now.
        """
        turn = self.turns.setdefault(name.microdao_id, asyncio.Semaphore(AT_ONCE_EACH))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(WAIT_S):
                    await held.enter_async_context(turn)
                    await held.enter_async_context(self.slots)
            except TimeoutError:
                raise _overloaded() from None
            return await self._put(name, data)

    async def _put(self, name: DocumentName, data: bytes) -> DocumentAnswer:
        store, microdao_id = self.indexing.documents, name.microdao_id
        known = await store.find(microdao_id, name.path)
        if known is None:
            await self._check_quota(microdao_id)
        run = await self._run(name, known)
        version = await asyncio.to_thread(lambda: hashlib.sha256(data).digest())
        if known is None or known.file_hash != version:
            try:
                run.cut[version] = await self.indexing.cut(microdao_id, name.path, data)
            except UnreadableFile as error:
                refusal = Unavailable if error.for_now else InvalidRequest
                raise refusal(f"`{name.path}`: {error}") from None
        file = await self.indexing.folders.write(microdao_id, name.path, data)
        await self.indexing.file(run, run.folders[0], file)
        stored = await store.page(microdao_id, path=name.path)
        if run.report.refused or not stored:
            reasons = [refused.reason for refused in run.report.refused]
            raise Conflict(f"`{name.path}`: {(*reasons, 'it was removed meanwhile')[0]}")
        outcomes = ("added", "changed", "unchanged")
        outcome = next(each for each in outcomes if getattr(run.report, each))
        return DocumentAnswer.model_validate({**stored[0].model_dump(), "outcome": outcome})

    async def page(self, query: DocumentsFilter) -> Page[StoredDocument]:
        """Returns indexed documents in order of their paths."""
        found = await self.indexing.documents.page(
            query.microdao_id, after=query.cursor, path=query.path, limit=query.limit + 1
        )
        items = found[: query.limit]
        cursor = items[-1].path if len(found) > query.limit else None
        return Page(items=items, next_cursor=cursor)

    async def remove(self, name: DocumentName) -> None:
        """Deletes a document from the folders and from every tier. Raises NotFound."""
        store, run = self.indexing.documents, await self._run(name, None)
        unlinked = [await self.indexing.folders.unlink(folder, name.path) for folder in run.folders]
        document = await store.find(name.microdao_id, name.path)
        if document is not None:
            await store.remove(name.microdao_id, document)
        await self.indexing.settle(run, name.path, None)
        if document is None and not any(unlinked):
            raise NotFound("no such document")
        version = document.file_hash.hex() if document else None
        self.indexing.events.emit(
            "memory.document_removed", microdao_id=name.microdao_id, version=version
        )

    async def _run(self, name: DocumentName, known: Document | None) -> Run:
        """Returns a run over one file."""
        folders, microdao_id = self.indexing.folders, name.microdao_id
        others = (await folders.of_microdaos()).get(microdao_id, [])
        return Run(
            microdao_id,
            list(dict.fromkeys([folders.home(microdao_id), *others])),
            read_all=True,
            known={} if known is None else {name.path: known},
        )

    async def _check_quota(self, microdao_id: str) -> None:
        limit = self.quotas.limit("documents", microdao_id)
        limit = MAX_DOCUMENTS if limit is None else min(limit, MAX_DOCUMENTS)
        if await self.indexing.documents.count(microdao_id) >= limit:
            raise OverLimit(
                f"`{microdao_id}` may store {limit} documents: remove some, or raise `quotas` in "
                "access.yaml",
                details={
                    "limit": "microdao.documents",
                    "subject": microdao_id,
                    "amount": limit,
                },
            )


def _overloaded() -> Overloaded:
    return Overloaded("too many documents arrive: retry later", retry_after_s=5)
