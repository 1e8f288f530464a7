"""HTTP routes of the workspace, below `/internal/messaging`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Query

from contracts.health import Health
from contracts.identity import Page
from contracts.workspace.projects import (
    FollowUp,
    FollowUpQuery,
    FollowUpStore,
    NewProject,
    Project,
    ProjectQuery,
    ProjectStore,
    ToolBody,
)
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.routing import Router, refusals
from interfaces.http.workspace.channels import MAX_BODY_BYTES, IdempotencyKey
from services.workspace.tools import WorkspaceTools


def workspace_router(
    channels: Router,
    projects: ProjectStore,
    follow_ups: FollowUpStore,
    tools: WorkspaceTools,
    health: Callable[[], Health],
) -> Router:
    """Returns the router of the application; `channels` holds the routes of its channels."""
    router = Router(MAX_BODY_BYTES)
    router.include_router(channels)

    @router.post("/projects", status_code=201, summary="Create a project in a microDAO")
    async def create_project(project: NewProject) -> Project:
        return await projects.create(project)

    @router.get("/projects", summary="A microDAO's projects, newest first")
    async def list_projects(query: Annotated[ProjectQuery, Query()]) -> Page[Project]:
        return await projects.page(query)

    @router.get("/follow-ups", summary="A microDAO's follow-ups, newest first")
    async def list_follow_ups(query: Annotated[FollowUpQuery, Query()]) -> Page[FollowUp]:
        return await follow_ups.page(query)

    @router.post("/tools/projects.list", summary="What the tool projects.list calls")
    async def tool_projects_list(call: ToolBody) -> list[dict[str, Any]]:
        return await tools.list_projects(call)

    @router.post(
        "/tools/followups.create",
        summary="What the tool followups.create calls, once for one Idempotency-Key",
        responses=refusals(404, 409),
    )
    async def tool_followups_create(call: ToolBody, key: IdempotencyKey = None) -> dict[str, Any]:
        return await tools.create_follow_up(call, key or None)

    add_health_routes(router, health)
    return router
