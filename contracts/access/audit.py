"""The audit trail: who did or was refused what, as rows that are added and never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Literal, Protocol
from uuid import UUID

from pydantic import AfterValidator, Field, model_validator

from contracts.identity import Page, PageQuery, new_id
from contracts.shapes import Frozen
from contracts.values import Instant, storable_text

AuditOutcome = Literal["started", "success", "failure", "denied"]
AuditText = Annotated[str, AfterValidator(storable_text)]
"""Cut at 256 characters."""


class AuditRecord(Frozen):
    """One action of a principal.

    `action` is the method of an HTTP request, `login` for a credential that was refused, `call` for
    a tool, `publish` for a message, `grant` or `reject` for an approval, `apply` for a file;
    `object` is what it was done to: the path below `/internal`, a tool, a subject; behind that of a
    principal, its kind and the names of the grants that it was given. An administrative action is
    `started` before it is served, and then `success` or `failure`, by its status, in a second
    record of the same request. `count` refusals alike are one record, with the ids of the first
    one; so are those of a principal that are too many to be listed, with `*` as action and object.
    """

    id: UUID = Field(default_factory=new_id)
    principal: AuditText
    action: AuditText
    object: AuditText
    outcome: AuditOutcome
    request_id: AuditText | None = None
    microdao_id: AuditText | None = None
    agent_id: AuditText | None = None
    count: int = 1

    def ended(self, outcome: AuditOutcome) -> AuditRecord:
        """Returns the record of the same action's end; ids of one millisecond have no order."""
        return self.model_copy(
            update={"id": max(new_id(), UUID(int=self.id.int + 1)), "outcome": outcome}
        )


class AuditEntry(AuditRecord):
    """A record that is stored.

    `created_at` is when it happened, of refusals alike the first one; `stored_at` is the database's
    time, which nobody who adds records can choose.
    """

    created_at: datetime
    stored_at: datetime


class AuditQuery(PageQuery):
    """Selects records, newest first. `since` is inclusive, `until` exclusive."""

    principal: AuditText | None = None
    action: AuditText | None = None
    outcome: AuditOutcome | None = None
    since: Instant | None = None
    until: Instant | None = None

    @model_validator(mode="after")
    def _ordered(self) -> AuditQuery:
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError("`since` is later than `until`: exchange them")
        return self


Note = Callable[[AuditRecord], None]
"""Queues a record. Never blocks and never raises."""


class AuditStore(Protocol):
    """Stores records. Raises DatabaseUnavailable while the database is away."""

    async def add(self, records: Sequence[AuditRecord]) -> None:
        """Adds all of them, if any, or none. One that is stored already is passed over."""

    async def page(self, query: AuditQuery) -> Page[AuditEntry]:
        """Returns one page. Raises InvalidRequest for a foreign cursor."""

    async def purge(self, keep_days: int) -> None:
        """Removes older records."""
