"""HTTP routes of Toolcore, below `/internal/tools`. `/call` answers in its own body, as its contract says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from contracts.errors import DaarionError, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from contracts.health import Health
from contracts.tools.api import ErrorKind, ToolCallRequest, ToolCallResult, ToolDefinition
from contracts.tools.ledger import CallFilter, CallPage
from interfaces.http.base.bodies import read_json, read_model
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.routing import add_route, new_router
from interfaces.tools.answers import call_body, unreadable
from services.tools.admin import ApprovalDecision, Audit, ToolAdmin
from services.tools.calls import DryRun, ToolCalls
from services.tools.catalog import Catalog, ListRequest
from services.tools.results import PageRequest, ResultPage

MCP_PATH = "/mcp"
MAX_CALL_BYTES = 2 << 20
MAX_DEFINITION_BYTES = 512 << 10
REFUSAL_STATUS: dict[ErrorKind | None, int] = {
    "denied": 403,
    "not_found": 404,
    "conflict": 409,
    "invalid_args": 422,
    "too_large": 422,
    "unavailable": 503,
}
_FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True)
class ToolRoutes:
    """The endpoints. What a reload replaces is looked up at each request."""

    calls: Callable[[], ToolCalls]
    catalog: Callable[[], Catalog]
    admin: Callable[[], ToolAdmin]
    audit: Audit
    health: Callable[[], Health]

    async def list_tools(self, request: Request) -> Response:
        """`GET ` (the prefix itself)."""
        return JsonResponse(
            self.catalog().listing(ListRequest.model_validate(dict(request.query_params)))
        )

    async def get_tool(self, request: Request) -> Response:
        """`GET /{tool_id}`."""
        return JsonResponse(await self.catalog().one(request.path_params["tool_id"]))

    async def call(self, request: Request) -> Response:
        """`POST /call`."""
        request_id = request.state.request_id
        try:
            dry_run = _flag(request, "dry_run")
            wanted = ToolCallRequest.model_validate_json(await read_json(request, MAX_CALL_BYTES))
        except (ValidationError, InvalidRequest, PayloadTooLarge, UnsupportedMediaType) as error:
            return call_refusal(error, request_id)
        if dry_run:
            return await self._dry_run(wanted, request_id)
        reply = await self.calls().call(wanted, via="http", request_id=request_id)
        status = 200 if reply.executed else REFUSAL_STATUS.get(reply.result.error_kind, 500)
        return JsonResponse(call_body(reply.result), status_code=status)

    async def list_calls(self, request: Request) -> Response:
        """`GET /calls`."""
        page = await self.audit.calls(CallFilter.model_validate(dict(request.query_params)))
        return JsonResponse(page.model_dump(mode="json", exclude_none=True))

    async def list_waiting(self, request: Request) -> Response:
        """`GET /approvals`."""
        page = await self.audit.waiting(CallFilter.model_validate(dict(request.query_params)))
        return JsonResponse(page.model_dump(mode="json", exclude_none=True))

    async def decide(self, request: Request) -> Response:
        """`POST /approvals/{call_id}`."""
        decision = await read_model(request, ApprovalDecision)
        await self.audit.decide(request.path_params["call_id"], decision)
        return JsonResponse({"ok": True})

    async def read_result(self, request: Request) -> Response:
        """`GET /results/{id}`."""
        wanted = PageRequest.model_validate(dict(request.query_params))
        page = await self.audit.result(request.path_params["id"], wanted)
        return JsonResponse(page.model_dump(exclude_none=True))

    async def put_tool(self, request: Request) -> Response:
        """`PUT /{tool_id}`."""
        body = await read_json(request, MAX_DEFINITION_BYTES)
        definition = _definition(body, request.path_params["tool_id"])
        tool, is_new = await self.admin().put(definition)
        return JsonResponse(tool, status_code=201 if is_new else 200)

    async def delete_tool(self, request: Request) -> Response:
        """`DELETE /{tool_id}`."""
        return JsonResponse(await self.admin().disable(request.path_params["tool_id"]))

    async def _dry_run(self, wanted: ToolCallRequest, request_id: str) -> Response:
        try:
            planned = await self.calls().dry_run(wanted)
        except DaarionError as error:
            return call_refusal(error, request_id)
        return JsonResponse({**dry_run_body(planned), "request_id": request_id})


def tools_router(routes: ToolRoutes, mcp: ASGIApp | None = None) -> APIRouter:
    """Returns the router of the application; `mcp` serves the registry to MCP clients."""
    router = new_router()
    if mcp is not None:
        router.routes.append(Route(MCP_PATH, endpoint=mcp, include_in_schema=False))
    add_route(
        router, "GET", "", routes.list_tools,
        summary="Tools that an agent may call, also as LLM tool definitions", query=ListRequest, errors=(400, 401, 503),
    )  # fmt: skip
    add_route(
        router, "POST", "/call", routes.call,
        summary="Call a tool", body=ToolCallRequest, response=ToolCallResult,
        answers=dict.fromkeys(sorted({*REFUSAL_STATUS.values(), UnsupportedMediaType.status}), ToolCallResult),
    )  # fmt: skip
    add_route(
        router,
        "GET",
        "/calls",
        routes.list_calls,
        summary="The audit",
        query=CallFilter,
        response=CallPage,
        errors=(400, 401, 503),
    )
    add_route(
        router, "GET", "/results/{id}", routes.read_result,
        summary="A page of a result too long to be sent whole", query=PageRequest, response=ResultPage, errors=(400, 401, 404, 503),
    )  # fmt: skip
    add_route(
        router, "GET", "/approvals", routes.list_waiting,
        summary="Calls that wait for approval (admin)", query=CallFilter, response=CallPage, errors=(400, 401, 403, 503),
    )  # fmt: skip
    add_route(
        router, "POST", "/approvals/{call_id}", routes.decide,
        summary="Grant or reject a waiting call (admin)", body=ApprovalDecision, errors=(400, 401, 403, 409, 503),
    )  # fmt: skip
    add_health_routes(router, routes.health)
    add_route(
        router, "GET", "/{tool_id}", routes.get_tool, summary="One tool", errors=(401, 404, 503)
    )
    add_route(
        router, "PUT", "/{tool_id}", routes.put_tool,
        summary="Register a tool or its next version (admin)", body=ToolDefinition, answers={201: None}, errors=(400, 401, 403, 413, 503),
    )  # fmt: skip
    add_route(
        router,
        "DELETE",
        "/{tool_id}",
        routes.delete_tool,
        summary="Disable a tool (admin)",
        errors=(401, 403, 404, 503),
    )
    return router


def is_admin_route(method: str, path: str) -> bool:
    """Which routes need the admin secret."""
    return (
        (method in {"PUT", "DELETE"} and path != MCP_PATH)
        or path == "/approvals"
        or path.startswith("/approvals/")
    )


def call_refusal(error: ValidationError | DaarionError, request_id: str) -> JsonResponse:
    """The answer to a call that could not even be read."""
    result = unreadable(error, request_id)
    status = (
        error.status
        if isinstance(error, UnsupportedMediaType)
        else REFUSAL_STATUS.get(result.error_kind, 500)
    )
    return JsonResponse(call_body(result), status_code=status)


def dry_run_body(planned: DryRun) -> dict[str, Any]:
    """The decision, and the request as the executor would get it; secrets by name alone."""
    body: dict[str, Any] = {
        "ok": planned.decision.allowed,
        "dry_run": True,
        "decision": planned.decision.model_dump(exclude_none=True),
    }
    if not planned.decision.allowed:
        return {
            **body,
            "error": planned.decision.reason,
            "error_kind": planned.decision.error_kind,
            "retryable": False,
        }
    execution, tool = planned.execution, planned.tool
    if execution is None or tool is None:
        return body
    definition = execution.tool
    request = {
        "executor": definition.executor,
        "target": definition.target,
        "body": {"args": execution.args, "context": execution.context},
        "idempotency_key": execution.idempotency_key,
        "timeout_s": execution.deadline.seconds,
        "secrets": [use.name for use in definition.secrets],
        "isolation": definition.isolation if definition.executor == "python" else None,
    }
    described = {
        "id": definition.id,
        "version": tool.registered.version,
        "effect": definition.effect,
    }
    return {
        **body,
        "tool": described,
        "requires_approval": planned.requires_approval,
        "request": request,
    }


def _definition(body: bytes, tool_id: str) -> ToolDefinition:
    """The definition, whose id may be left to the path. Raises InvalidRequest or ValidationError."""
    try:
        given = orjson.loads(body)
    except ValueError:
        raise InvalidRequest("not valid JSON: send a tool definition") from None
    if not isinstance(given, dict):
        raise InvalidRequest("send a tool definition as a JSON object")
    if given.setdefault("id", tool_id) != tool_id:
        raise InvalidRequest("id: differs from the one in the path")
    return ToolDefinition.model_validate(given)


def _flag(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "false").lower()
    if given not in _FLAGS:
        raise InvalidRequest(f"{name}: give true or false")
    return _FLAGS[given]
