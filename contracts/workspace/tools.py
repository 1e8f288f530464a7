"""Bodies of the workspace's two tools, `projects.list` and `followups.create`."""

from typing import Any

from contracts.identity import Identifier
from contracts.shapes import Frozen, Strict
from contracts.workspace.fields import Limit
from contracts.workspace.follow_ups import NewFollowUp
from contracts.workspace.projects import ProjectStatus


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
