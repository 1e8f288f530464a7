"""Wire shapes and ports of the workspace: projects and follow-ups of a microDAO, and the two tools over them."""

from datetime import date, datetime
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from contracts.identity import Cursor, Identifier, Page
from contracts.values import storable

MAX_PAGE = 200
MAX_NAME = 300
MAX_DESCRIPTION = 5_000

ProjectStatus = Literal["active", "paused", "done"]
FollowUpStatus = Literal["open", "done"]


_STRICT = ConfigDict(extra="forbid", frozen=True)
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME),
    AfterValidator(storable),
]
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500),
    AfterValidator(storable),
]
Description = Annotated[
    str, StringConstraints(max_length=MAX_DESCRIPTION), AfterValidator(storable)
]
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE)]


class NewProject(BaseModel):
    """Body of `POST /projects`."""

    model_config = _STRICT

    name: Name
    microdao_id: Identifier
    description: Description | None = None
    status: ProjectStatus = "active"


class Project(BaseModel):
    """One project."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: UUID
    microdao_id: str
    name: str
    status: ProjectStatus
    description: str | None = None
    created_at: datetime


class ProjectQuery(BaseModel):
    """Query of `GET /projects`: newest first, one page."""

    model_config = _STRICT

    microdao_id: Identifier
    status: ProjectStatus | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class NewFollowUp(BaseModel):
    """What a follow-up says. `project_id` must be a project of the same microDAO."""

    model_config = _STRICT

    title: Title
    description: Description | None = None
    project_id: UUID | None = None
    assignee: Identifier | None = None
    due_date: date | None = None


class FollowUp(BaseModel):
    """One follow-up. `created_by` is who asked for it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

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


class FollowUpQuery(BaseModel):
    """Query of `GET /follow-ups`: newest first, one page."""

    model_config = _STRICT

    microdao_id: Identifier
    project_id: UUID | None = None
    assignee: Identifier | None = None
    status: FollowUpStatus | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class ToolContext(BaseModel):
    """Who calls a tool, as Toolcore writes it. More keys may be there."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    agent_id: Identifier
    microdao_id: Identifier
    call_id: Identifier | None = None


class ToolBody(BaseModel):
    """What the HTTP executor posts to a tool's target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    args: dict[str, Any]
    context: ToolContext


class ListProjectsArgs(BaseModel):
    """Arguments of the tool `projects.list`."""

    model_config = _STRICT

    microdao_id: Identifier | None = None
    status: ProjectStatus | None = None
    limit: Limit = 50


class CreateFollowUpArgs(NewFollowUp):
    """Arguments of the tool `followups.create`."""

    microdao_id: Identifier | None = None


class Projects(Protocol):
    """Where projects are kept. Raises DatabaseUnavailable when it is away."""

    async def create(self, project: NewProject) -> Project:
        """Stores a new project."""

    async def page(self, query: ProjectQuery) -> Page[Project]:
        """Returns one page, newest first. Raises InvalidRequest for a foreign cursor."""


class FollowUps(Protocol):
    """Where follow-ups are kept. Raises DatabaseUnavailable when it is away."""

    async def create(
        self, microdao_id: str, created_by: str, key: str, follow_up: NewFollowUp
    ) -> tuple[FollowUp, bool]:
        """Stores a follow-up once for `key`; the flag tells whether it is new.

        Raises:
            Conflict: the key made another follow-up before.
            NotFound: the microDAO has no such project.
        """

    async def page(self, query: FollowUpQuery) -> Page[FollowUp]:
        """Returns one page, newest first. Raises InvalidRequest for a foreign cursor."""
