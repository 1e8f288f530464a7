"""Every application's router for documentation: paths and models, with no use case behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from starlette.responses import Response

from contracts.health import Health
from interfaces.http.agents import agents_router
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.routing import Router, refusals
from interfaces.http.graph.root import root_router
from interfaces.http.llm.batches import BatchRoutes, add_batch_routes
from interfaces.http.llm.chat import LLMRoutes, add_limit_routes, llm_router
from interfaces.http.llm.openai import OpenAIRoutes, add_embedding_routes, add_openai_routes
from interfaces.http.memory import memory_router
from interfaces.http.tools import MCP_PATH, ToolRoutes, tools_router
from interfaces.http.workspace import channels_router, workspace_router

_JSON = {"description": "As the protocol says", "content": {"application/json": {}}}
_NOTHING = cast("Any", None)


def _health() -> Health:
    return Health(status="starting")


async def _described() -> Response:
    """Documents an endpoint that another ASGI application serves; never called."""
    return Response(status_code=404)


def _llm() -> Router:
    router = llm_router(LLMRoutes(_NOTHING, _NOTHING, _health))
    add_embedding_routes(router, _NOTHING)
    add_limit_routes(router, _NOTHING)
    add_openai_routes(router, OpenAIRoutes(_NOTHING))
    add_batch_routes(router, BatchRoutes(_NOTHING))
    return router


def _tools() -> Router:
    router = tools_router(ToolRoutes(_NOTHING, _health))
    # An ASGI application of its own, so it has no route of ours to be documented by.
    router.add_api_route(
        MCP_PATH,
        _described,
        methods=["POST"],
        summary="The tools as an MCP server (streamable HTTP, stateless)",
        description="The headers X-Agent-Id and X-Microdao-Id name the caller.",
        response_class=JsonResponse,
        responses={202: _JSON, 400: _JSON, **refusals(408, 413, 415)},
    )
    return router


_ROUTERS: dict[str, Callable[[], Router]] = {
    "tools": _tools,
    "workspace": lambda: workspace_router(
        channels_router(_NOTHING, _NOTHING), _NOTHING, _NOTHING, _NOTHING, _health
    ),
    "agents": lambda: agents_router(_NOTHING, _NOTHING, dict, _health),
    "memory": lambda: memory_router(_NOTHING, _health),
    "llm": _llm,
}


def documented_routers(prefixes: Mapping[str, str]) -> dict[str, tuple[str, Router]]:
    """Returns prefix and router of the root and of each application in `prefixes` with routes."""
    found = {
        name: (prefix, _ROUTERS[name]()) for name, prefix in prefixes.items() if name in _ROUTERS
    }
    return {**found, "root": ("/", root_router(_health, dict))}
