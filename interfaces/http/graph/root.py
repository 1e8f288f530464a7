"""HTTP routes of the root application: aggregate health, the OpenAPI document and its page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from contracts.errors import Unavailable
from contracts.health import Health
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.routing import Router

# They describe the routes and hold no data: a browser opens them without a credential.
OPEN_PATHS = frozenset(
    {"/", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/openapi.json"}
)
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
_RETRY_S = 1.0
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>daarion-serve</title>
<link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="page"></div><script src="/docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", deepLinking: true});</script></body>
</html>
"""


def root_router(
    health: Callable[[], Health],
    document: Callable[[], dict[str, Any]],
    prefixes: Iterable[str] = (),
    *routers: Router,
) -> Router:
    """Returns the router of the application.

    `routers` are included. The page's scripts come from an installed package: no network is needed.
    Paths below `prefixes` arrive here only while the application there is not deployed yet.
    """
    router = Router()
    add_health_routes(router, health)
    for more in routers:
        router.include_router(more)
    rendered: list[bytes] = []

    @router.get("/", summary="Where to go from here")
    async def index() -> dict[str, str]:
        return {
            "name": "daarion-serve",
            "docs": "/docs",
            "openapi": "/openapi.json",
            "health": "/health",
        }

    @router.get("/openapi.json", summary="This document", response_class=JsonResponse)
    async def openapi() -> Response:
        if not rendered:
            rendered.append(orjson.dumps(document()))
        return JsonResponse(rendered[0])

    @router.get("/docs", summary="This document as a page", response_class=HTMLResponse)
    async def page() -> Response:
        return HTMLResponse(_PAGE)

    for name, media_type in _ASSETS.items():
        router.add_route(f"/docs/{name}", _asset(name, media_type), include_in_schema=False)
    for prefix in prefixes:
        for path in (prefix, f"{prefix}/{{rest:path}}"):
            router.add_route(path, _not_yet, methods=_METHODS, include_in_schema=False)
    return router


async def _not_yet(_request: Request) -> Response:
    raise Unavailable("this application is not deployed yet: retry shortly", retry_after_s=_RETRY_S)


def _asset(name: str, media_type: str) -> Callable[[Request], Any]:
    content = (files("fastapi_offline") / "static" / name).read_bytes()

    async def serve(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=86400"})

    return serve
