"""HTTP routes of Toolcore, below `/internal/tools`. `/call` has a body of its own for refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Path, Query, Response
from pydantic import BaseModel
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from contracts.errors import DaarionError, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from contracts.health import Health
from contracts.tools.api import ErrorKind, ToolCallRequest, ToolCallResult, ToolDefinition
from contracts.tools.ledger import CallFilter, CallPage
from contracts.values import unsendable
from interfaces.http.base.bodies import JsonRequest
from interfaces.http.base.errors import JsonResponse, error_response
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.routing import MCP_PATH, Flag, PathId, Router, refusals
from interfaces.tools.answers import call_body, unreadable
from services.tools.admin import ApprovalDecision
from services.tools.application import Toolcore
from services.tools.calls import DryRun
from services.tools.catalog import REGISTRY_FIELDS, ListRequest
from services.tools.outcomes import PageRequest, ResultPage

MAX_CALL_BYTES = 2 << 20
MAX_DEFINITION_BYTES = 512 << 10
REFUSAL_STATUS: dict[ErrorKind | None, int] = {
    "denied": 403,
    "not_found": 404,
    "conflict": 409,
    "invalid_args": 422,
    "too_large": 413,
    "unavailable": 503,
}


class DefinitionRequest(JsonRequest):
    """A request whose body may leave the tool's id to the path, and may be what `GET` answered."""

    async def json(self) -> Any:
        """Returns the body, completed by the path, without what the registry says of a tool."""
        value = await super().json()
        if isinstance(value, dict):
            value.setdefault("id", self.path_params["tool_id"])
            return {name: it for name, it in value.items() if name not in REGISTRY_FIELDS}
        return value


class CallQuery(BaseModel):
    """Query of `POST /call`: a dry run decides, and calls nothing."""

    dry_run: Flag = False


@dataclass(frozen=True)
class ToolRoutes:
    """What the routes call. What a reload replaces is looked up at each request."""

    toolcore: Toolcore
    health: Callable[[], Health]

    async def call(self, request: Request, wanted: ToolCallRequest) -> Response:
        """`POST /call`."""
        request_id = request.state.request_id
        if CallQuery.model_validate(dict(request.query_params)).dry_run:
            return await self._dry_run(wanted, request_id)
        reply = await self.toolcore.calls().call(wanted, via="http", request_id=request_id)
        status = 200 if reply.executed else REFUSAL_STATUS.get(reply.result.error_kind, 500)
        return JsonResponse(call_body(reply.result), status_code=status)

    async def _dry_run(self, wanted: ToolCallRequest, request_id: str) -> Response:
        try:
            planned = await self.toolcore.calls().dry_run(wanted)
        except DaarionError as error:
            return call_refusal(error, request_id)
        return JsonResponse({**dry_run_body(planned), "request_id": request_id})


def tools_router(routes: ToolRoutes, mcp: ASGIApp | None = None) -> Router:
    """Returns the router of the application; `mcp` serves the registry to MCP clients."""
    router, calls = Router(MAX_DEFINITION_BYTES), Router(MAX_CALL_BYTES)
    if mcp is not None:
        router.routes.append(Route(MCP_PATH, endpoint=mcp, include_in_schema=False))
    statuses = sorted({*REFUSAL_STATUS.values(), UnsupportedMediaType.status})
    calls.hot(
        "POST",
        "/call",
        routes.call,
        summary="Call a tool",
        response_model=ToolCallResult,
        responses={status: {"model": ToolCallResult} for status in statuses},
    )
    router.include_router(calls)
    _add_audit_routes(router, routes)
    add_health_routes(router, routes.health)
    _add_registry_routes(router, routes)  # after those whose paths look like a tool's id
    return router


def _add_audit_routes(router: Router, routes: ToolRoutes) -> None:
    @router.get("/calls", summary="The audit")
    async def list_calls(query: Annotated[CallFilter, Query()]) -> CallPage:
        return await routes.toolcore.audit.calls(query)

    @router.get(
        "/results/{id}",
        summary="A page of a result too long to be sent whole",
        responses=refusals(404),
    )
    async def read_result(
        result_id: Annotated[PathId, Path(alias="id")], query: Annotated[PageRequest, Query()]
    ) -> ResultPage:
        return await routes.toolcore.audit.result(result_id, query)

    @router.get("/approvals", summary="Calls that wait for approval (admin)")
    async def list_waiting(query: Annotated[CallFilter, Query()]) -> CallPage:
        return await routes.toolcore.audit.waiting(query)

    @router.post(
        "/approvals/{call_id}",
        summary="Grant or reject a waiting call (admin)",
        responses=refusals(409),
    )
    async def decide(call_id: PathId, decision: ApprovalDecision) -> dict[str, bool]:
        await routes.toolcore.audit.decide(call_id, decision)
        return {"ok": True}


def _add_registry_routes(router: Router, routes: ToolRoutes) -> None:
    @router.get("", summary="Tools that an agent may call, also as LLM tool definitions")
    async def list_tools(query: Annotated[ListRequest, Query()]) -> dict[str, Any]:
        return routes.toolcore.catalog().listing(query)

    @router.get("/{tool_id}", summary="One tool", responses=refusals(404))
    async def get_tool(tool_id: PathId) -> dict[str, Any]:
        return await routes.toolcore.catalog().one(tool_id)

    @router.delete(
        "/{tool_id}",
        summary="Disable a tool until it is put again (admin)",
        responses=refusals(404),
    )
    async def delete_tool(tool_id: PathId) -> dict[str, Any]:
        return await routes.toolcore.admin().disable(tool_id)

    definitions = Router(MAX_DEFINITION_BYTES, DefinitionRequest)

    @definitions.put(
        "/{tool_id}",
        summary="Register or enable a tool, or its next version (admin)",
        description="The path may give its id alone; what `GET` says of version, origin and state "
        "is ignored.",
        responses={201: {"model": dict[str, Any]}},
    )
    async def put_tool(
        tool_id: PathId, definition: ToolDefinition, response: Response
    ) -> dict[str, Any]:
        if definition.id != tool_id:
            raise InvalidRequest("id: differs from the one in the path")
        for name in ("input_schema", "output_schema"):
            if mistake := unsendable(getattr(definition, name), name):
                raise InvalidRequest(mistake)
        tool, is_new = await routes.toolcore.admin().put(definition)
        response.status_code = 201 if is_new else 200
        return tool

    router.include_router(definitions)


def is_admin_route(method: str, path: str) -> bool:
    """Which routes need the admin secret."""
    return (
        (method in {"PUT", "DELETE"} and path != MCP_PATH)
        or path == "/approvals"
        or path.startswith("/approvals/")
    )


def call_refusal(error: DaarionError, request_id: str) -> JsonResponse:
    """The answer to a call that could not be read."""
    result = unreadable(error, request_id)
    status = (
        error.status
        if isinstance(error, UnsupportedMediaType)
        else REFUSAL_STATUS.get(result.error_kind, 500)
    )
    return JsonResponse(call_body(result), status_code=status)


def _call_error(error: DaarionError, request_id: str) -> JsonResponse:
    is_unreadable = isinstance(error, InvalidRequest | PayloadTooLarge | UnsupportedMediaType)
    return (call_refusal if is_unreadable else error_response)(error, request_id)


TOOL_ERRORS = {"POST /call": _call_error}
"""For the ingress: a call that could not be read is answered in the body of a call."""


def dry_run_body(planned: DryRun) -> dict[str, Any]:
    """The decision, and the request as the executor would get it; secrets appear by name only."""
    decision, execution = planned.decision, planned.execution
    body: dict[str, Any] = {
        "ok": decision.allowed,
        "dry_run": True,
        "decision": decision.model_dump(exclude_none=True),
    }
    if execution is None:
        refusal = {"error": decision.reason, "error_kind": decision.error_kind, "retryable": False}
        return body | refusal
    definition = execution.tool
    return {
        **body,
        "tool": {
            "id": definition.id,
            "version": planned.tool_version,
            "effect": definition.effect,
        },
        "requires_approval": planned.requires_approval,
        "request": {
            "executor": definition.executor,
            "target": definition.target,
            "body": {"args": execution.args, "context": execution.context},
            "idempotency_key": execution.idempotency_key,
            "timeout_s": execution.deadline.seconds,
            "secrets": [use.name for use in definition.secrets],
            "isolation": definition.isolation if definition.executor == "python" else None,
        },
    }
