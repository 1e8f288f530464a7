"""Batches of LLM calls: wire shapes of `/internal/llm/batch`, and the ports of their storage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    FailFast,
    Field,
)

from contracts.identity import Identifier, PageQuery
from contracts.llm.requests import ProxyRequest
from contracts.shapes import Strict

MAX_REQUESTS = 10_000
MAX_BATCH_BYTES = 50_000_000

BatchStatus = Literal["in_progress", "completed", "cancelling", "cancelled"]
ItemStatus = Literal["pending", "running", "succeeded", "failed", "cancelled"]


class BatchRequest(ProxyRequest):
    """One request of a batch: a body of `/proxy` and the caller's own id, unique in the batch."""

    custom_id: Identifier


def _bounded(given: Any) -> Any:
    if isinstance(given, list) and not 1 <= len(given) <= MAX_REQUESTS:
        raise ValueError(f"from 1 to {MAX_REQUESTS} in a batch, but there are {len(given)}")
    return given


class NewBatch(Strict):
    """Body of `POST /batch`. All requests are of one microDAO; the first wrong one is named."""

    requests: Annotated[
        list[BatchRequest],
        FailFast(),
        Field(min_length=1, max_length=MAX_REQUESTS),
        BeforeValidator(_bounded),
    ]


class BatchCounts(BaseModel):
    """Requests by what became of them; they add up to `total`."""

    total: int
    pending: int
    running: int
    succeeded: int
    failed: int
    cancelled: int


class Batch(BaseModel):
    """A batch as it stands. `completed` means that every request has a result, be it an error."""

    id: str
    status: BatchStatus
    counts: BatchCounts
    created_at: datetime
    ended_at: datetime | None = None


class BatchFilter(PageQuery):
    """Query string of `GET /batch`: newest first, by pages."""

    microdao_id: Identifier


class BatchPage(BaseModel):
    """`next_cursor` is absent on the last page."""

    batches: list[Batch]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class NewItem:
    """A request as it is stored: JSON that `services.llm.batches` writes and reads.

    `agent_id` and `channel_id` say whose it is.
    """

    custom_id: str
    request: bytes
    agent_id: str
    channel_id: str | None


@dataclass(frozen=True, slots=True)
class ItemResult:
    """A stored request with its state; `result` is JSON."""

    custom_id: str
    status: ItemStatus
    result: str | None


@dataclass(frozen=True, slots=True)
class BatchWork:
    """A leased request. Once another attempt has begun, this one's `lease` can change nothing.

    `stalled_s` is for how many seconds its model has been left alone at every try; else zero.
    """

    batch_id: UUID
    position: int
    microdao_id: str
    request: str
    lease: UUID
    failures: int
    stalled_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Delay:
    """The request has no result yet: it, or its whole batch, is due again after `seconds`.

    `failed` counts a failure. `stalled` starts `stalled_s`, which the next failure ends.
    """

    seconds: float
    failed: bool = False
    pause_batch: bool = False
    stalled: bool = False


class BatchStore(Protocol):
    """Batches of one microDAO; those of others do not exist for it.

    Neither do those of others than `submitter`, the name of a credential, where one is given.
    """

    async def create(
        self, microdao_id: str, items: Sequence[NewItem], max_waiting: int, submitter: str
    ) -> Batch:
        """Stores a batch whole or not at all.

        Raises:
            RateLimited: over `max_waiting` requests of the microDAO would wait.
            OverLimit: these alone are more than that.
        """

    async def get(self, microdao_id: str, batch_id: str, submitter: str | None = None) -> Batch:
        """Returns one batch. Raises NotFound."""

    async def page(self, query: BatchFilter, submitter: str | None = None) -> BatchPage:
        """Returns one page, newest first. Raises InvalidRequest for a cursor of another query."""

    async def cancel(self, microdao_id: str, batch_id: str) -> Batch:
        """Cancels a batch that has not ended; results are kept. Raises NotFound."""

    def results(self, microdao_id: str, batch_id: str) -> AsyncIterator[list[ItemResult]]:
        """Yields every request in the order of submission, some at a time, in its present state."""


class BatchQueue(Protocol):
    """The waiting requests of all microDAOs, answered under leases."""

    async def lease(self, lease_s: float) -> BatchWork | None:
        """Leases a due request: microDAOs in turn, then the batches of each.

        A request whose lease was over comes back with one failure more.
        """

    async def renew(self, held: Collection[UUID], lease_s: float) -> set[UUID]:
        """Renews these leases; returns those that still hold."""

    async def finish(self, work: BatchWork, result: bytes, *, succeeded: bool) -> bool | None:
        """Writes the result of a running attempt.

        Returns whether the batch ended with it, or None when the attempt was over.
        """

    async def release(self, work: BatchWork, delay: Delay) -> None:
        """Ends an attempt without a result."""

    async def purge(self, retention_s: float) -> int:
        """Deletes batches submitted longer ago; returns the number of deleted rows."""
