"""What the Memory Orchestrator needs from storage, from the knowledge base and from the LLM proxy, as Protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from contracts.deadline import Deadline
from contracts.identity import Tenant
from contracts.llm.embeddings import EmbeddingBatch
from contracts.memory.api import (
    Candidate,
    EraseReceipt,
    EraseRequest,
    ExportedMemory,
    ExportFilter,
    Item,
    ItemsFilter,
    ItemsPage,
    Kind,
    ReindexReport,
)


@dataclass(frozen=True, slots=True)
class Filters:
    """Narrows a search. `since` ≤ time < `until`. A channel lets what belongs to no channel pass."""

    channel_id: str | None = None
    kinds: tuple[Kind, ...] | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def narrow(self) -> bool:
        """Whether anything is filtered at all."""
        return any(
            value is not None for value in (self.channel_id, self.kinds, self.since, self.until)
        )


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A searchable piece of text and its grams with their counts."""

    content: str
    grams: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class NewMemory:
    """What a store writes. Equal `fingerprint`s are the same memory, and so are equal `idempotency_key`s (both SHA-256)."""

    id: str
    tenant: Tenant
    kind: Kind
    channel_id: str | None
    content: Mapping[str, Any]
    meta: Mapping[str, Any]
    created_at: datetime
    fingerprint: bytes
    idempotency_key: bytes | None
    chunks: Sequence[NewChunk]


@dataclass(frozen=True, slots=True)
class Stored:
    """`id` of the memory, which was there already when `duplicate`."""

    id: str
    duplicate: bool
    indexed: bool


class MemoryRecords(Protocol):
    """Durable memories and what is derived from them in the same transaction."""

    async def add(self, memory: NewMemory) -> Stored:
        """Returns when the memory, its event, its chunks and their place in the queue are committed.

        Raises:
            Conflict: the idempotency key stands for another content.
        """

    async def add_all(self, memories: Sequence[NewMemory]) -> int:
        """Adds memories of one tenant in one transaction; returns how many were new."""

    async def is_indexed(self, tenant: Tenant, memory_id: str) -> bool:
        """Whether none of its chunks waits for an embedding."""

    async def content_of(
        self, tenant: Tenant, memory_id: str
    ) -> tuple[Kind, Mapping[str, Any]] | None:
        """Returns kind and content, None when there is no such memory."""

    async def page(self, items: ItemsFilter) -> ItemsPage:
        """Returns memories, newest first. Raises InvalidRequest for a cursor of another query."""

    async def delete(self, tenant: Tenant, memory_id: str) -> bool:
        """Removes one memory from every tier; False when there is none."""

    def export(self, selection: ExportFilter) -> AsyncIterator[list[ExportedMemory]]:
        """Yields pages of memories, oldest first."""


class EventLogReader(Protocol):
    """The short-term tier."""

    async def recent(self, tenant: Tenant, filters: Filters, limit: int) -> list[Candidate]:
        """Returns the newest events, newest first."""

    async def read(self, tenant: Tenant, channel_id: str | None, limit: int) -> list[LoggedEvent]:
        """Returns the newest `limit` events, oldest first; of every channel when `channel_id` is None."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One entry of the short-term log. `seq` grows with arrival."""

    seq: int
    memory_id: str
    kind: Kind
    content: Mapping[str, Any]
    created_at: datetime


class DenseIndex(Protocol):
    """Nearest vectors of the tenant's own memory and of the knowledge bases that it sees."""

    async def search(
        self, tenant: Tenant, filters: Filters, question: EmbeddingBatch, limit: int
    ) -> list[Candidate]:
        """Returns items by falling cosine similarity of their nearest chunk with the batch's one vector.

        Only vectors of its model version count. Of items that say the same there is one. At least half of `limit`, where
        there are as many.
        """


Weigh = Callable[[Mapping[str, int], int], Sequence[tuple[str, float]]]
"""From (in how many chunks each gram occurs, number of chunks) to the grams worth looking for with their weights."""


@dataclass(frozen=True, slots=True)
class LexicalAnswer:
    """Items by the falling BM25 of their best chunk; `ceiling` is the sum of the weights looked for."""

    candidates: list[Candidate] = field(default_factory=list)
    ceiling: float = 0.0


class LexicalIndex(Protocol):
    """BM25 over grams, of the same areas."""

    async def search(
        self, tenant: Tenant, filters: Filters, grams: Sequence[str], weigh: Weigh, limit: int
    ) -> LexicalAnswer:
        """Returns the best items, as many and as different as DenseIndex does; `grams` are those of the question."""


class ItemReader(Protocol):
    """Turns candidates into items."""

    async def read(self, tenant: Tenant, chunks: Mapping[str, int]) -> dict[str, Item]:
        """Returns the items by id, from item id to the chunk shown (0: the item's first). What is gone meanwhile is absent."""


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """A chunk that waits for its embedding."""

    chunk_no: int
    content: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Chunks of one area that this process embeds until its lease ends."""

    microdao_id: str
    agent_id: str
    chunks: Sequence[PendingChunk]


class IngestionQueue(Protocol):
    """Chunks that wait for their embedding. Claims of dead processes return by themselves."""

    async def claim(self, limit: int) -> Claim | None:
        """Returns chunks of the area whose turn it is, None when nothing waits. Areas take turns."""

    async def finish(self, claim: Claim, vectors: EmbeddingBatch) -> None:
        """Writes the vectors and takes the chunks from the queue, in one transaction; repeating it changes nothing."""

    async def release(self, claim: Claim) -> None:
        """Puts the chunks back, to be claimed at once."""

    async def refuse(self, claim: Claim, most: int) -> int:
        """Counts a refusal of the chunks; takes those from the queue that had `most`. Returns how many were given up."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary of the events up to `last_seq`; `sources` are the ids of the memories in it, oldest first."""

    text: str
    sources: Sequence[str]
    last_seq: int
    since: datetime | None
    until: datetime | None
    model: str | None


class SummaryStore(Protocol):
    """Summaries by tenant, channel and size."""

    async def read(self, tenant: Tenant, channel_id: str | None, size: int) -> Summary | None:
        """Returns the last summary, None when there is none."""

    async def write(
        self, tenant: Tenant, channel_id: str | None, size: int, summary: Summary
    ) -> None:
        """Keeps the summary in place of the last one, unless one of its sources was deleted meanwhile."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote, and which model it was."""

    content: str
    model: str


class ChatClient(Protocol):
    """The LLM proxy, as any service calls it."""

    async def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        tenant: Tenant,
        channel_id: str | None,
        deadline: Deadline,
    ) -> Completion:
        """Returns the answer. Raises the leaf that the proxy answered with, or Unavailable."""


class MemoryAdministration(Protocol):
    """What touches whole tenants."""

    async def erase(self, request: EraseRequest) -> EraseReceipt:
        """Removes everything of a microDAO, an agent or a channel from every tier and keeps a receipt."""


class KnowledgeBase(Protocol):
    """The long-term tier: folders of Markdown and text."""

    async def reindex(self, microdao_id: str | None) -> ReindexReport:
        """Brings the index in line with one microDAO's folder, or with all folders. Raises Conflict while another run is on."""


class Upkeep(Protocol):
    """One piece of periodic work. Returns quickly when there is nothing to do."""

    name: str
    interval_s: float

    async def run(self) -> None:
        """Does what is due; done by one process at a time."""


class Leases(Protocol):
    """Mutual exclusion between processes, by time."""

    async def take(self, name: str, seconds: float) -> bool:
        """Takes or prolongs the lease; False while another process holds it."""

    async def give_back(self, name: str) -> None:
        """Ends this process's lease."""
