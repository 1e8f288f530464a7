"""The endpoints behind the tools `projects.list` and `followups.create`, as a projects-service
would have them.
"""

from __future__ import annotations

from typing import Any

from contracts.errors import Forbidden, InvalidRequest
from contracts.workspace.projects import (
    CreateFollowUpArgs,
    FollowUpStore,
    ListProjectsArgs,
    NewFollowUp,
    ProjectQuery,
    ProjectStore,
    ToolBody,
)

PROJECT_FIELDS = {"id", "name", "status", "description", "created_at"}


class WorkspaceTools:
    """Runs the tools for the identity that Toolcore wrote into the context."""

    def __init__(self, projects: ProjectStore, follow_ups: FollowUpStore) -> None:
        self._projects = projects
        self._follow_ups = follow_ups

    async def list_projects(self, body: ToolBody) -> list[dict[str, Any]]:
        """Returns the newest projects of the caller's microDAO.

        Raises:
            ValidationError: the arguments are wrong.
            Forbidden: they name another microDAO.
        """
        args = ListProjectsArgs.model_validate(body.args)
        _check_tenant(args.microdao_id, body)
        page = await self._projects.page(
            ProjectQuery(microdao_id=body.context.microdao_id, status=args.status, limit=args.limit)
        )
        return [
            project.model_dump(mode="json", include=PROJECT_FIELDS, exclude_none=True)
            for project in page.items
        ]

    async def create_follow_up(self, body: ToolBody, idempotency_key: str | None) -> dict[str, Any]:
        """Creates a follow-up once for the key, or for the call's id where there is none.

        Raises:
            ValidationError: the arguments are wrong.
            Forbidden: they name another microDAO.
            InvalidRequest: there is neither key nor call id.
            NotFound, Conflict: as `FollowUpStore.create`.
        """
        args = CreateFollowUpArgs.model_validate(body.args)
        _check_tenant(args.microdao_id, body)
        key = idempotency_key or body.context.call_id
        if not key:
            raise InvalidRequest(
                "give an Idempotency-Key, or `context.call_id`: a follow-up is created once for it"
            )
        wanted = NewFollowUp.model_validate(args.model_dump(exclude={"microdao_id"}))
        created, _ = await self._follow_ups.create(
            body.context.microdao_id, body.context.agent_id, key, wanted
        )
        return created.model_dump(mode="json", exclude={"microdao_id"}, exclude_none=True)


def _check_tenant(asked: str | None, body: ToolBody) -> None:
    if asked is not None and asked != body.context.microdao_id:
        raise Forbidden("`microdao_id` is not the caller's own")
