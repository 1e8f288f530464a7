"""`GET /health` (readiness) and `GET /health/live` (liveness), the same for every application."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request, Response

from contracts.health import Health, Liveness
from interfaces.http.base.routing import Router


def add_health_routes(router: Router, health: Callable[[], Health]) -> None:
    """Adds both routes; readiness is 503 until every required dependency is ready.

    The checks are shown to callers that the ingress knows; everybody sees the status.
    """

    @router.get(
        "/health",
        summary="Whether every dependency is ready; the checks are shown to callers with a key",
        responses={503: {"model": Health}},
    )
    async def readiness(request: Request, response: Response) -> Health:
        state = health()
        if not getattr(request.state, "sees_details", False):
            state = Health(status=state.status)
        response.status_code = 200 if state.status in {"ready", "degraded"} else 503
        response.headers["Cache-Control"] = "no-store"
        return state

    @router.get("/health/live", summary="Whether the process answers")
    async def liveness(response: Response) -> Liveness:
        response.headers["Cache-Control"] = "no-store"
        return Liveness()
