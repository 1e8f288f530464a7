"""`GET /health` (readiness) and `GET /health/live` (liveness), the same for every application."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contracts.health import Health, Liveness
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.routing import add_route


def add_health_routes(router: APIRouter, health: Callable[[], Health]) -> None:
    """Adds both routes; readiness is 503 until every required dependency is ready."""

    async def readiness(_request: Request) -> Response:
        state = health()
        ready = state.status in {"ready", "degraded"}
        return JsonResponse(
            state.model_dump(exclude_none=True),
            status_code=200 if ready else 503,
            headers={"Cache-Control": "no-store"},
        )

    async def liveness(_request: Request) -> Response:
        return JsonResponse(Liveness().model_dump(), headers={"Cache-Control": "no-store"})

    add_route(
        router,
        "GET",
        "/health",
        readiness,
        summary="Whether every dependency is ready",
        response=Health,
        answers={503: Health},
    )
    add_route(
        router,
        "GET",
        "/health/live",
        liveness,
        summary="Whether the process answers",
        response=Liveness,
    )
