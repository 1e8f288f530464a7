"""Routes that are documented by FastAPI and called directly.

FastAPI's dependency machinery costs more than our own work on a relayed call, so `RawRoute` hands the request straight
to the endpoint (`async def endpoint(request) -> Response`), while path, models and texts still make the OpenAPI page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]


class RawRoute(APIRoute):
    """Calls its endpoint with the request, without parsing or dependencies."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Returns the endpoint itself."""
        return self.endpoint


def new_router() -> APIRouter:
    """Returns a router of raw routes that never redirects."""
    return APIRouter(route_class=RawRoute, redirect_slashes=False)


def fixed_endpoints(router: APIRouter) -> dict[tuple[str, str], Endpoint]:
    """Returns the endpoints of raw routes whose path has no parameter, by method and path: found without trying one route after another."""
    fixed = [route for route in router.routes if isinstance(route, RawRoute) and "{" not in route.path]
    found: dict[tuple[str, str], Endpoint] = {}
    for route in fixed:
        for method in route.methods:
            found.setdefault((method, route.path), route.endpoint)
    return found


def add_route(
    router: APIRouter,
    method: str,
    path: str,
    endpoint: Endpoint,
    *,
    summary: str,
    body: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
    response: type[BaseModel] | None = None,
    media_type: str | None = None,
    errors: tuple[int, ...] = (),
    status: int = 200,
) -> None:
    """Adds one documented route.

    `media_type` describes an answer that is no JSON model, such as an event stream. What every route that demands a credential or
    takes a body may refuse stands beside `errors` by itself.
    """
    extra: dict[str, Any] = {}
    if 401 in errors:
        errors = (*errors, 403, 421)
    if body is not None:
        errors = (*errors, 408, 415)
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": _schema(body)}}}
    if query is not None:
        extra["parameters"] = _parameters(query)
    answers: dict[int | str, dict[str, Any]] = {code: {"$ref": "#/components/responses/Error"} for code in sorted(set(errors))}
    if media_type is not None:
        answers[status] = {"description": summary, "content": {media_type: {}}}
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        summary=summary,
        response_model=response,
        status_code=status,
        openapi_extra=extra,
        responses=answers,
    )


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


def _parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = _schema(model)
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field} for name, field in schema.get("properties", {}).items()
    ]
