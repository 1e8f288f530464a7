"""Routes that are documented by FastAPI and called directly.

FastAPI's dependency machinery costs more than our own work on a relayed call, so `RawRoute` hands the request straight
to the endpoint (`async def endpoint(request) -> Response`), while path, models and texts still make the OpenAPI page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

ERROR = {"$ref": "#/components/responses/Error"}

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
    fixed = [
        route for route in router.routes if isinstance(route, RawRoute) and "{" not in route.path
    ]
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
    answers: Mapping[int, type[BaseModel] | None] = MappingProxyType({}),
    status: int = 200,
) -> None:
    """Adds one documented route.

    `media_type` describes an answer without a JSON model, such as an event stream. `errors` are the statuses of this
    route's own refusals; `build_openapi` adds those that all routes share. `answers` are further statuses whose body is
    not the envelope, with their models; None is JSON without a model.
    """
    extra: dict[str, Any] = {}
    if body is not None:
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(body)}},
        }
    if query is not None:
        extra["parameters"] = _parameters(query)
    responses: dict[int | str, dict[str, Any]] = dict.fromkeys(errors, ERROR)
    for code, model in answers.items():
        responses[code] = (
            {"description": summary, "model": model}
            if model
            else {"description": summary, "content": {"application/json": {}}}
        )
    if media_type is not None:
        responses[status] = {"description": summary, "content": {media_type: {}}}
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        summary=summary,
        response_model=response,
        status_code=status,
        openapi_extra=extra,
        responses=responses,
    )


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


def _parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = _schema(model)
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema.get("properties", {}).items()
    ]
