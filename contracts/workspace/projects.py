"""Projects and follow-ups of a microDAO, and the tools over them: wire shapes and stores' ports."""

from datetime import date, datetime
from typing import Any, Literal, Protocol
from uuid import UUID

from contracts.identity import Identifier, Page, PageQuery
from contracts.shapes import Frozen, Strict
from contracts.workspace.fields import Description, Limit, Name, Title

ProjectStatus = Literal["active", "paused", "done"]
FollowUpStatus = Literal["open", "done"]


class NewProject(Strict):
    """Body of `POST /projects`."""

    name: Name
    microdao_id: Identifier
    description: Description | None = None
    status: ProjectStatus = "active"


class Project(Frozen):
    """One project."""

    id: UUID
    microdao_id: str
    name: str
    status: ProjectStatus
    description: str | None = None
    created_at: datetime


class ProjectQuery(PageQuery):
    """Query of `GET /projects`: newest first, one page."""

    microdao_id: Identifier
    status: ProjectStatus | None = None


class ProjectStore(Protocol):
    """Stores projects. Raises DatabaseUnavailable while the database is away."""

    async def create(self, project: NewProject) -> Project:
        """Stores a new project."""

    async def page(self, query: ProjectQuery) -> Page[Project]:
        """Returns one page, newest first. Raises InvalidRequest for a foreign cursor."""


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


class FollowUpQuery(PageQuery):
    """Query of `GET /follow-ups`: newest first, one page."""

    microdao_id: Identifier
    project_id: UUID | None = None
    assignee: Identifier | None = None
    status: FollowUpStatus | None = None


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


class ToolContext(Frozen):
    """The caller of a tool, as Toolcore sends it. Further keys are ignored."""

    agent_id: Identifier
    microdao_id: Identifier
    call_id: Identifier | None = None


class ToolBody(Strict):
    """What the HTTP executor posts to a tool's target."""

    args: dict[str, Any]
    context: ToolContext


class ListProjectsArgs(Strict):
    """Arguments of the tool `projects.list`."""

    microdao_id: Identifier | None = None
    status: ProjectStatus | None = None
    limit: Limit = 50


class CreateFollowUpArgs(NewFollowUp):
    """Arguments of the tool `followups.create`."""

    microdao_id: Identifier | None = None
