"""Ports of queries, stores and summaries: storage and the LLM proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from contracts.errors import OverLimit
from contracts.identity import Tenant
from contracts.llm.embeddings import EmbeddingBatch
from contracts.memory.administration import ExportedMemory, ExportFilter
from contracts.memory.api import Item, ItemsFilter, ItemsPage
from contracts.memory.fields import Kind, Tier

Arm = Literal["dense", "lexical", "words", "recent"]


@dataclass(frozen=True, slots=True)
class Filters:
    """Narrows a search; `since` is inclusive, `until` exclusive.

    A channel selects its own items and those without a channel.
    """

    channel_id: str | None = None
    kinds: tuple[Kind, ...] | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_set(self) -> bool:
        """Whether any filter is set."""
        return any(
            value is not None for value in (self.channel_id, self.kinds, self.since, self.until)
        )


@dataclass(frozen=True, slots=True)
class Area:
    """Rows of an agent, of a microDAO's knowledge base (no agent), or of the shared one (neither).

    `shard` is the area's own partition, 0 while it has none.
    """

    microdao_id: str
    agent_id: str
    shard: int = 0

    @property
    def identity(self) -> dict[str, str]:
        """The ids as parameters of a statement or of a transaction."""
        return {"microdao_id": self.microdao_id, "agent_id": self.agent_id}

    @property
    def shards(self) -> list[int]:
        """The partitions that may hold its rows; new rows always arrive in 0."""
        return [0, self.shard] if self.shard else [0]


@dataclass(frozen=True, slots=True)
class SearchScope:
    """The areas that one query searches. It is read once and given to every arm.

    It holds until the query's timeout: rows move to a new shard only when no query is left that was
    started before the shard was announced.
    """

    tenant: Tenant
    areas: Sequence[Area]


class ScopeReader(Protocol):
    """Knows which areas a tenant may search."""

    async def scope_of(self, tenant: Tenant) -> SearchScope:
        """Returns the tenant's own area and the knowledge bases that hold something for it."""


@dataclass(frozen=True, slots=True)
class ItemCandidate:
    """An item as one arm found it: the best of its chunks.

    `score` is the arm's own: dense, cosine similarity (-1..1); lexical and words, BM25 (≥ 0,
    compare the ceilings of `LexicalAnswer`); recent, 0, because only its order counts. `chunk` is
    the number of the chunk that scored.
    """

    id: str
    score: float
    created_at: datetime
    kind: Kind
    tier: Tier = "mid-term"
    chunk: int = 0


class DenseIndex(Protocol):
    """Nearest vectors."""

    async def search(
        self, scope: SearchScope, filters: Filters, question: EmbeddingBatch, limit: int
    ) -> list[ItemCandidate]:
        """Returns items by falling cosine similarity of their nearest chunk with the one vector.

        Searches only vectors of the question's model version. Items with equal texts are one
        candidate. Returns at least half of `limit`, if there are as many.
        """


@dataclass(frozen=True, slots=True)
class LexicalAnswer:
    """Items by the falling BM25 of their best chunk: by its grams, and by its words' lemmas.

    `ceiling` is the BM25 of a chunk of average length that holds every gram of the question once:
    a score divided by it is the part of the question that was found. `words_ceiling` is the same
    for lemmas.
    """

    candidates: list[ItemCandidate] = field(default_factory=list)
    ceiling: float = 0.0
    words: list[ItemCandidate] = field(default_factory=list)
    words_ceiling: float = 0.0


class LexicalIndex(Protocol):
    """Search by parts of words and by lemmas."""

    async def search(
        self, scope: SearchScope, filters: Filters, query: str, limit: int
    ) -> LexicalAnswer:
        """Returns the best items; equal texts and `limit` as in DenseIndex.

        By lemmas at most 20.
        """


@dataclass(frozen=True, slots=True)
class Passage:
    """A turn of a conversation, or a section of a document.

    `group` is its channel or its document. `text` is that of the chunk with the number `chunk`,
    `cosine` its similarity to the question, None where it has no vector yet.
    """

    id: str
    group: str
    kind: Kind
    created_at: datetime
    text: str
    chunk: int
    cosine: float | None


class Surroundings(Protocol):
    """Knows what was said before and after."""

    async def around(
        self,
        scope: SearchScope,
        filters: Filters,
        ids: Sequence[str],
        question: EmbeddingBatch,
        gap_s: float,
    ) -> list[Passage]:
        """Returns those of `ids` that are turns of a channel or sections of a document, each with
        up to two neighbours before and after, by group and in order.

        Neighbours pass the filters. Those of a turn were said at most `gap_s` seconds away.
        """


class ItemReader(Protocol):
    """Turns candidates into items."""

    async def read(self, scope: SearchScope, chunks: Mapping[str, int]) -> dict[str, Item]:
        """Returns items by id. Deleted ones are absent.

        `chunks` maps an item's id to the number of the chunk to show, 0 for its first.
        """


@dataclass(frozen=True, slots=True)
class NewMemory:
    """A memory to store.

    Equal `fingerprint`s are the same memory, and so are equal `idempotency_key`s (both SHA-256).
    `chunks` are the searchable texts.
    """

    id: str
    tenant: Tenant
    kind: Kind
    channel_id: str | None
    content: Mapping[str, Any]
    meta: Mapping[str, Any]
    created_at: datetime
    fingerprint: bytes
    idempotency_key: bytes | None
    chunks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Stored:
    """Outcome of a store; `duplicate` when the memory existed before."""

    id: str
    duplicate: bool
    indexed: bool


class MemoryRecords(Protocol):
    """Durable memories, and everything that the same transaction derives from them."""

    async def add(self, memory: NewMemory, refusal: OverLimit | None = None) -> Stored:
        """Commits the memory with its event, its chunks and their place in the embedding queue.

        Raises:
            Conflict: the idempotency key was used for another content.
            OverLimit: the `refusal`, unless the memory existed before.
        """

    async def add_all(self, memories: Sequence[NewMemory], refusal: OverLimit | None = None) -> int:
        """Adds memories of one tenant in one transaction; returns how many were new.

        Raises the `refusal`, and adds none, unless all existed before.
        """

    async def is_indexed(self, tenant: Tenant, memory_id: str) -> bool:
        """Whether every chunk has its embedding."""

    async def content_of(self, tenant: Tenant, memory_id: str) -> Mapping[str, Any] | None:
        """Returns the content, or None for an unknown id."""

    async def page(self, items: ItemsFilter) -> ItemsPage:
        """Returns memories, newest first. Raises InvalidRequest for another query's cursor."""

    async def delete(self, tenant: Tenant, memory_id: str) -> bool:
        """Removes one memory from every tier; False for an unknown id."""

    def export(self, selection: ExportFilter) -> AsyncIterator[list[ExportedMemory]]:
        """Yields pages of memories, oldest first."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One entry of the short-term log. `seq` grows with arrival."""

    seq: int
    memory_id: str
    kind: Kind
    content: Mapping[str, Any]
    created_at: datetime


class ShortTermReader(Protocol):
    """Reads the short-term tier, a log of events."""

    async def recent(self, tenant: Tenant, filters: Filters, limit: int) -> list[ItemCandidate]:
        """Returns the newest events, newest first."""

    async def read(self, tenant: Tenant, channel_id: str | None, limit: int) -> list[LoggedEvent]:
        """Returns the newest events, oldest first; of all channels when `channel_id` is None."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary of the events up to `last_seq`; `sources` are their memories' ids, oldest first."""

    text: str
    sources: Sequence[str]
    last_seq: int
    since: datetime | None
    until: datetime | None
    model: str | None


class SummaryStore(Protocol):
    """Summaries by tenant, channel and number of events."""

    async def read(self, tenant: Tenant, channel_id: str | None, size: int) -> Summary | None:
        """Returns the last summary, if there is one."""

    async def write(
        self, tenant: Tenant, channel_id: str | None, size: int, summary: Summary
    ) -> None:
        """Replaces the last summary, unless one of the new one's sources was deleted meanwhile."""
