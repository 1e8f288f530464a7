"""Bodies of the workspace's two tools, `projects.list` and `followups.create`."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from contracts.identity import Identifier
from contracts.workspace.fields import Limit
from contracts.workspace.follow_ups import NewFollowUp
from contracts.workspace.projects import ProjectStatus


class ToolContext(BaseModel):
    """The caller of a tool, as Toolcore sends it. Further keys are ignored."""

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

    model_config = ConfigDict(extra="forbid", frozen=True)

    microdao_id: Identifier | None = None
    status: ProjectStatus | None = None
    limit: Limit = 50


class CreateFollowUpArgs(NewFollowUp):
    """Arguments of the tool `followups.create`."""

    microdao_id: Identifier | None = None
