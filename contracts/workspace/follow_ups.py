"""Follow-ups of a microDAO: wire shapes and the port of their store."""

from datetime import date, datetime
from typing import Literal, Protocol
from uuid import UUID

from contracts.identity import Cursor, Identifier, Page
from contracts.shapes import Frozen, Strict
from contracts.workspace.fields import Description, Limit, Title

FollowUpStatus = Literal["open", "done"]


class NewFollowUp(Strict):
    """A follow-up to create. `project_id` must be a project of the same microDAO."""

    title: Title
    description: Description | None = None
    project_id: UUID | None = None
    assignee: Identifier | None = None
    due_date: date | None = None


class FollowUp(Frozen):
    """One follow-up. `created_by` is the agent or person who asked for it."""

    id: UUID
    microdao_id: str
    title: str
    description: str | None = None
    project_id: UUID | None = None
    assignee: str | None = None
    due_date: date | None = None
    status: FollowUpStatus
    created_by: str
    created_at: datetime


class FollowUpQuery(Strict):
    """Query of `GET /follow-ups`: newest first, one page."""

    microdao_id: Identifier
    project_id: UUID | None = None
    assignee: Identifier | None = None
    status: FollowUpStatus | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class FollowUpStore(Protocol):
    """Stores follow-ups. Raises DatabaseUnavailable while the database is away."""

    async def create(
        self, microdao_id: str, created_by: str, key: str, follow_up: NewFollowUp
    ) -> tuple[FollowUp, bool]:
        """Stores a follow-up once for `key`; the flag tells whether it is new.

        Raises:
            Conflict: the key belongs to another follow-up.
            NotFound: the microDAO has no such project.
        """

    async def page(self, query: FollowUpQuery) -> Page[FollowUp]:
        """Returns one page, newest first. Raises InvalidRequest for a foreign cursor."""
