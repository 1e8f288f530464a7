"""Two kinds of routes: path operations that FastAPI runs, and hot ones that it only documents.

Both read JSON bodies under the same bounds and answer mistakes in the same words, see `bodies` and
`errors`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Header, Path
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from interfaces.http.base.bodies import MAX_BODY_BYTES, JsonRequest, read_model
from interfaces.http.base.claims import check_address, check_body, named_in_query

MCP_PATH = "/mcp"
"""Below the prefix of an application that is an MCP server, too."""
ERROR = {"$ref": "#/components/responses/Error"}

_FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}


def _flag(value: object) -> bool:  # FastAPI validates the default, too
    text = str(value).lower()
    if text not in _FLAGS:
        raise ValueError("give true or false")
    return _FLAGS[text]


Handler = Callable[[Request], Awaitable[Response]]
PathId = Annotated[str, Path(min_length=1)]
Flag = Annotated[bool, BeforeValidator(_flag)]
"""A flag of a query string; without a value it is set."""


async def documented_key(
    key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> None:
    """A dependency that documents the header of a hot route, which reads it itself."""


class JsonRoute(APIRoute):
    """A path operation. Values that are None are left out of its answers."""

    max_body_bytes: ClassVar[int]
    request_class: ClassVar[type[JsonRequest]]

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **{**options, "response_model_exclude_none": True})

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Returns FastAPI's own handler behind our reading of the body."""
        handle, body = super().get_route_handler(), self.body_field
        named = named_in_query(self.dependant)

        async def read_and_handle(request: Request) -> Response:
            bounded = self.request_class(request.scope, request.receive)
            if body is not None:
                is_required = body.field_info.is_required()
                await bounded.read(self.max_body_bytes, is_required=is_required)
                check_body(bounded.state.principal, await bounded.json())
            if named or bounded.path_params:
                check_address(bounded, named)
            return await handle(bounded)

        return read_and_handle


class HotRoute(APIRoute):
    """Calls `endpoint(request)`, or `endpoint(request, body)` where the endpoint names a body.

    FastAPI's dependencies cost more than our own work on a relayed call, so none is resolved here.
    They still document the route: a dependency declares a body that the endpoint reads itself.
    """

    max_body_bytes: ClassVar[int]
    handler: Handler

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Returns the endpoint, behind the reading of its body."""
        endpoint, body, max_bytes = self.endpoint, self.dependant.body_params, self.max_body_bytes
        self.handler = endpoint
        if body:
            model: Any = body[0].field_info.annotation

            async def read_and_call(request: Request) -> Response:
                given = await read_model(request, model, max_bytes)
                check_body(request.state.principal, given)
                response: Response = await endpoint(request, given)
                return response

            self.handler = read_and_call
        return self.handler


class Router(APIRouter):
    """A router of path operations that never redirects; `hot` adds a hot route.

    `max_body_bytes` bounds the body of each of its routes; `request_class` may complete requests.
    """

    def __init__(
        self,
        max_body_bytes: int = MAX_BODY_BYTES,
        request_class: type[JsonRequest] = JsonRequest,
    ) -> None:
        bounds = {"max_body_bytes": max_body_bytes, "request_class": request_class}
        super().__init__(
            route_class=type("JsonRoute", (JsonRoute,), bounds), redirect_slashes=False
        )
        # A FastAPI application has this among its middleware; path operations ask for it.
        self.middleware_stack = AsyncExitStackMiddleware(self.middleware_stack)
        self._hot_class: type[APIRoute] = type("HotRoute", (HotRoute,), bounds)

    def hot(
        self, method: str, path: str, endpoint: Callable[..., Awaitable[Response]], **options: Any
    ) -> None:
        """Adds a hot route; `options` are those of `add_api_route`."""
        self.add_api_route(
            path, endpoint, methods=[method], route_class_override=self._hot_class, **options
        )


def fixed_routes(router: APIRouter) -> dict[tuple[str, str], HotRoute]:
    """Returns the hot routes whose path has no parameter, by method and path.

    The ingress finds them without trying one route after another.
    """
    found: dict[tuple[str, str], HotRoute] = {}
    for route in router.routes:
        if isinstance(route, HotRoute) and "{" not in route.path:
            for method in route.methods:
                found.setdefault((method, route.path), route)
    return found


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns what documents a route's own refusals; `build_openapi` adds those that all share."""
    return dict.fromkeys(statuses, ERROR)
