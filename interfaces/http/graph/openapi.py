"""One OpenAPI document for the whole surface, from the applications' routers.

The routers are made for it: paths and models, with no use case behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import Response

from contracts.health import Health
from interfaces.http.access import access_router
from interfaces.http.agents import agents_router
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.routing import ERROR, MCP_PATH, Router, refusals
from interfaces.http.graph.root import root_router
from interfaces.http.llm.batches import BatchRoutes, add_batch_routes
from interfaces.http.llm.chat import LLMRoutes, add_limit_routes, llm_router
from interfaces.http.llm.openai import OpenAIRoutes, add_embedding_routes, add_openai_routes
from interfaces.http.memory import memory_router
from interfaces.http.tools import ToolRoutes, tools_router
from interfaces.http.workspace import channels_router, workspace_router

_JSON = {"description": "As the protocol says", "content": {"application/json": {}}}
_NOTHING = cast("Any", None)
_OPENAI = {"$ref": "#/components/responses/OpenAIError"}
TITLE = "daarion-serve"
VERSION = "0.1.0"


def _error_answer(description: str, required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Describes a body `{"error": {…}}` by the schemas of its required and optional fields."""
    fields = {"type": "object", "required": list(required), "properties": required | optional}
    schema = {"type": "object", "required": ["error"], "properties": {"error": fields}}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_TEXT, _FLAG, _TEXT_OR_NULL = {"type": "string"}, {"type": "boolean"}, {"type": ["string", "null"]}
_ERROR = _error_answer(
    "The error envelope; `retryable` tells whether the same request can succeed later.",
    {"type": _TEXT, "message": _TEXT, "retryable": _FLAG, "request_id": _TEXT},
    details={"type": "object"},
)
_OPENAI_ERROR = _error_answer(
    "An error in OpenAI's shape.",
    {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
)
# The ingress refuses these on every route: credentials, a foreign page or host, a full replica.
_REFUSED_ANYWHERE = ("401", "403", "421", "503")
# Bodies that are wrong, too slow, too large, or not sent as JSON.
_REFUSED_BODIES = ("400", "408", "413", "415")
# How FastAPI describes its own refusal of parameters and bodies; ours is a 400 in the envelope.
_FASTAPI_REFUSAL = {"$ref": "#/components/schemas/HTTPValidationError"}
_SECURITY = {
    "InternalSecret": {"type": "apiKey", "in": "header", "name": "X-Internal-Secret"},
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}


def build_openapi(prefixes: Mapping[str, str]) -> dict[str, Any]:
    """Returns the document; `prefixes` maps an application, which is a tag there, to its prefix."""
    surface = APIRouter(generate_unique_id_function=_operation_id)
    for tag, (prefix, router) in documented_routers(prefixes).items():
        surface.include_router(router, prefix=prefix.rstrip("/"), tags=[tag])
    document = get_openapi(
        title=TITLE,
        version=VERSION,
        description="LLM proxy, agent memory, tools and agents behind one ingress.",
        routes=surface.routes,
    )
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _describe_refusals(operation, path)
    document["security"] = [{name: []} for name in _SECURITY] + [{}]
    components = document["components"]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["responses"] = {"Error": _ERROR, "OpenAIError": _OPENAI_ERROR}
    components["securitySchemes"] = _SECURITY
    return document


def _operation_id(route: APIRoute) -> str:
    parts = [*route.methods, *route.path_format.replace("{", "").replace("}", "").split("/")]
    named = "_".join(part for part in parts if part)
    return named.lower().replace("-", "_").replace(".", "_")


def _describe_refusals(operation: dict[str, Any], path: str) -> None:
    """Replaces FastAPI's refusal by ours, and adds what the ingress refuses on every route."""
    described = operation["responses"]
    takes_input = _schema(described.get("422", {})) == _FASTAPI_REFUSAL
    if takes_input:
        del described["422"]
    if not path.startswith("/internal/") or path.endswith(("/health", "/health/live")):
        operation["security"] = [{}]
        return
    shared = _REFUSED_ANYWHERE + (("400",) if takes_input else ())
    if "requestBody" in operation:
        shared += _REFUSED_BODIES
    responses = dict.fromkeys(shared, ERROR)
    for status, answer in described.items():
        responses[status] = (
            _either(answer) if status in responses and "$ref" not in answer else answer
        )
    if "/v1/" in path:
        responses = {
            status: _OPENAI if answer.get("$ref") == ERROR["$ref"] else answer
            for status, answer in responses.items()
        }
    operation["responses"] = responses


def _either(answer: dict[str, Any]) -> dict[str, Any]:
    """Describes a status that a route answers in its own shape, the ingress in the envelope."""
    either = {"anyOf": [_schema(answer), _schema(_ERROR)]}
    return {**answer, "content": {"application/json": {"schema": either}}}


def _schema(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return found


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


def _with_mcp(router: Router, what: str) -> Router:
    """Describes the MCP server, which is an ASGI application of its own without a route of ours."""
    router.add_api_route(
        MCP_PATH,
        _described,
        methods=["POST"],
        summary=f"{what} as an MCP server (streamable HTTP, stateless)",
        description="The headers X-Agent-Id and X-Microdao-Id name the caller.",
        response_class=JsonResponse,
        responses={202: _JSON, 400: _JSON, **refusals(408, 413, 415)},
    )
    return router


_ROUTERS: dict[str, Callable[[], Router]] = {
    "tools": lambda: _with_mcp(tools_router(ToolRoutes(_NOTHING, _health)), "The tools"),
    "workspace": lambda: workspace_router(
        channels_router(_NOTHING), _NOTHING, _NOTHING, _NOTHING, _health
    ),
    "agents": lambda: agents_router(_NOTHING, _NOTHING, dict, _health),
    "memory": lambda: _with_mcp(memory_router(_NOTHING, _health), "The memory"),
    "llm": _llm,
}


def documented_routers(prefixes: Mapping[str, str]) -> dict[str, tuple[str, Router]]:
    """Returns prefix and router of the root and of each application in `prefixes` with routes."""
    found = {
        name: (prefix, _ROUTERS[name]()) for name, prefix in prefixes.items() if name in _ROUTERS
    }
    root = root_router(_health, dict, (), access_router(_NOTHING, _NOTHING))
    return {**found, "root": ("/", root)}
