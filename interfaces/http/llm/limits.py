"""`GET /limits` of the LLM proxy."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contracts.llm.limits import LimitsFilter, LimitsPage
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.routing import add_route
from services.llm.limits.states import LimitStates


@dataclass(frozen=True)
class LimitRoutes:
    """The endpoint over its use case."""

    states: LimitStates

    async def read(self, request: Request) -> Response:
        """`GET /limits`."""
        wanted = LimitsFilter.model_validate(dict(request.query_params))
        page = await self.states.page(wanted, request.state.credential)
        return JsonResponse(page.model_dump(mode="json"))


def add_limit_routes(router: APIRouter, routes: LimitRoutes) -> None:
    """Adds the route."""
    add_route(
        router, "GET", "/limits", routes.read,
        summary="The limits that apply to an agent, a microDAO and the presented credential: what is used, what is left, until when",
        query=LimitsFilter, response=LimitsPage, errors=(400, 401, 503),
    )  # fmt: skip
