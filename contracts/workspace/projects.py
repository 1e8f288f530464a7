"""Projects of a microDAO: wire shapes and the port of their store."""

from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

from contracts.identity import Cursor, Identifier, Page
from contracts.shapes import Frozen, Strict
from contracts.workspace.fields import Description, Limit, Name

ProjectStatus = Literal["active", "paused", "done"]


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


class ProjectQuery(Strict):
    """Query of `GET /projects`: newest first, one page."""

    microdao_id: Identifier
    status: ProjectStatus | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class ProjectStore(Protocol):
    """Stores projects. Raises DatabaseUnavailable while the database is away."""

    async def create(self, project: NewProject) -> Project:
        """Stores a new project."""

    async def page(self, query: ProjectQuery) -> Page[Project]:
        """Returns one page, newest first. Raises InvalidRequest for a foreign cursor."""
