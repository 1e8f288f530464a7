"""`GET /limits` of the LLM proxy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Query, Response
from starlette.requests import Request

from contracts.llm.limits import LimitsFilter, LimitsPage
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.routing import Router
from services.llm.limits.states import LimitStates


@dataclass(frozen=True)
class LimitRoutes:
    """What the route calls."""

    states: LimitStates


def add_limit_routes(router: Router, routes: LimitRoutes) -> None:
    """Adds the route."""

    @router.get(
        "/limits",
        summary="Limits of an agent, a microDAO and the presented credential: used, left, reset",
        response_model=LimitsPage,
    )
    async def read(query: Annotated[LimitsFilter, Query()], request: Request) -> Response:
        page = await routes.states.page(query, request.state.credential)
        # null: a limit without a window, or without a reset.
        return JsonResponse(page.model_dump(mode="json"))
