"""HTTP routes of the workspace, below `/internal/messaging`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from contracts.errors import InvalidRequest
from contracts.health import Health
from contracts.identity import Page
from contracts.workspace.follow_ups import FollowUp, FollowUpQuery, FollowUpStore
from contracts.workspace.projects import NewProject, Project, ProjectQuery, ProjectStore
from contracts.workspace.tools import ToolBody
from interfaces.http.base.bodies import read_model
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.routing import add_route, new_router
from interfaces.http.workspace.channels import ChannelRoutes, add_channel_routes
from services.workspace.tools import WorkspaceTools

MAX_BODY_BYTES = 256 << 10
MAX_KEY_CHARS = 1_024


@dataclass(frozen=True)
class WorkspaceRoutes:
    """The endpoints of projects, follow-ups and the tools over them."""

    projects: ProjectStore
    follow_ups: FollowUpStore
    tools: WorkspaceTools
    health: Callable[[], Health]

    async def create_project(self, request: Request) -> Response:
        """`POST /projects`."""
        created = await self.projects.create(await read_model(request, NewProject, MAX_BODY_BYTES))
        return _json(created, status=201)

    async def list_projects(self, request: Request) -> Response:
        """`GET /projects`."""
        return _json(
            await self.projects.page(ProjectQuery.model_validate(dict(request.query_params)))
        )

    async def list_follow_ups(self, request: Request) -> Response:
        """`GET /follow-ups`."""
        return _json(
            await self.follow_ups.page(FollowUpQuery.model_validate(dict(request.query_params)))
        )

    async def tool_projects_list(self, request: Request) -> Response:
        """`POST /tools/projects.list`."""
        return JsonResponse(
            await self.tools.list_projects(await read_model(request, ToolBody, MAX_BODY_BYTES))
        )

    async def tool_followups_create(self, request: Request) -> Response:
        """`POST /tools/followups.create`."""
        key = request.headers.get("idempotency-key", "").strip()
        if len(key) > MAX_KEY_CHARS:
            raise InvalidRequest(f"the Idempotency-Key is longer than {MAX_KEY_CHARS} characters")
        return JsonResponse(
            await self.tools.create_follow_up(
                await read_model(request, ToolBody, MAX_BODY_BYTES), key or None
            )
        )


def workspace_router(routes: WorkspaceRoutes, channels: ChannelRoutes) -> APIRouter:
    """Returns the router of the application."""
    router = new_router()
    add_channel_routes(router, channels)
    add_route(
        router, "POST", "/projects", routes.create_project,
        summary="Create a project in a microDAO", body=NewProject, response=Project, status=201, errors=(400, 401, 413, 503),
    )  # fmt: skip
    add_route(
        router, "GET", "/projects", routes.list_projects,
        summary="A microDAO's projects, newest first", query=ProjectQuery, response=Page[Project], errors=(400, 401, 503),
    )  # fmt: skip
    add_route(
        router, "GET", "/follow-ups", routes.list_follow_ups,
        summary="A microDAO's follow-ups, newest first", query=FollowUpQuery, response=Page[FollowUp], errors=(400, 401, 503),
    )  # fmt: skip
    add_route(
        router, "POST", "/tools/projects.list", routes.tool_projects_list,
        summary="What the tool projects.list calls", body=ToolBody, media_type="application/json", errors=(400, 401, 403, 503),
    )  # fmt: skip
    add_route(
        router, "POST", "/tools/followups.create", routes.tool_followups_create,
        summary="What the tool followups.create calls, once for one Idempotency-Key",
        body=ToolBody, media_type="application/json", errors=(400, 401, 403, 404, 409, 503),
    )  # fmt: skip
    add_health_routes(router, routes.health)
    return router


def _json(model: BaseModel, status: int = 200) -> JsonResponse:
    content: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
    return JsonResponse(content, status_code=status)
