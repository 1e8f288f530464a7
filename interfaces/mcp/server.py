"""The registry as an MCP server over streamable HTTP: the same catalogue, policy and ledger.

Stateless, with JSON answers: any replica serves any request. The headers `X-Agent-Id` and
`X-Microdao-Id` name the caller, or the keys `agent_id` and `microdao_id` of a request's `_meta`,
which may also hold `call_id`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from uuid import uuid4

import mcp_types as types
import orjson
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from contracts.access.principals import acting
from contracts.errors import DaarionError, Forbidden, MethodNotAllowed, Unavailable
from contracts.tools.api import ErrorKind, ToolCallRequest
from interfaces.http.base.audit import REFUSED
from interfaces.http.base.bodies import require_json
from interfaces.http.base.errors import invalid_body
from interfaces.tools.answers import call_body
from services.tools.application import Toolcore
from services.tools.catalog import description_of
from services.tools.outcomes import CallAnswer
from services.tools.registry import Tool

NAME = "daarion-tools"
VERSION = "0.1.0"
INSTRUCTIONS = (
    "Tools of DAARION agents. Send X-Agent-Id and X-Microdao-Id with every request; "
    "calls run on their behalf."
)
MAX_BODY_BYTES = 2 << 20
MAX_STRUCTURED_CHARS = 1 << 20
AGENT_HEADER = "x-agent-id"
MICRODAO_HEADER = "x-microdao-id"
START_TIMEOUT_S = 10.0

Context = Any
"""The library's request context: `request` is the HTTP request, `meta` the call's `_meta`."""


class ToolMcpServer:
    """An ASGI application below the ingress, with a task for the library's sessions."""

    def __init__(self, toolcore: Toolcore) -> None:
        self._toolcore = toolcore
        server: Server[Any] = Server(
            NAME,
            version=VERSION,
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )
        self._manager = StreamableHTTPSessionManager(
            server, json_response=True, stateless=True, max_request_body_size=MAX_BODY_BYTES
        )
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request.

        Raises:
            MethodNotAllowed: not POST; a stateless server has no streams and no sessions.
            UnsupportedMediaType: not sent as JSON.
            Unavailable: before `start` and after `close`.
        """
        if scope["method"] != "POST":
            raise MethodNotAllowed("this server is stateless and takes only POST")
        require_json(scope["headers"])
        if not self._started.is_set() or self._stopping.is_set():
            raise Unavailable("the MCP server is starting or stopping: retry")
        await self._manager.handle_request(scope, receive, send)

    async def start(self) -> None:
        """Starts the sessions' task: the task that enters a task group must also leave it."""
        self._task = asyncio.create_task(self._run(), name="tools:mcp")
        async with asyncio.timeout(START_TIMEOUT_S):
            await self._started.wait()

    async def close(self) -> None:
        """Ends every session."""
        self._stopping.set()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        async with self._manager.run():
            self._started.set()
            await self._stopping.wait()

    async def _list_tools(
        self, context: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        try:
            agent_id, microdao_id = _identity(context)
            tools = self._toolcore.catalog().allowed(agent_id, microdao_id)
        except DaarionError as error:
            _leave_refused(context, error)
            raise MCPError(types.INTERNAL_ERROR, error.message) from None
        return types.ListToolsResult(tools=[_described(tool) for tool in tools])

    async def _call_tool(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            agent_id, microdao_id = _identity(context)
            acting().check(tool_id=params.name)
        except Forbidden as error:
            _leave_refused(context, error)
            return _refused(error.message, "denied")
        wanted = {
            "tool_id": params.name,
            "agent_id": agent_id,
            "microdao_id": microdao_id,
            "args": params.arguments or {},
        }
        try:
            request = ToolCallRequest.model_validate(
                {**wanted, "call_id": _meta(context, "call_id")}
            )
        except ValidationError as error:
            return _refused(
                f"{invalid_body(error).message} (identity: headers X-Agent-Id and X-Microdao-Id)"
            )
        reply = await self._toolcore.calls().call(
            request, via="mcp", request_id=_request_id(context)
        )
        return _answer(reply)


def _identity(context: Context) -> tuple[str | None, str | None]:
    """Returns agent and microDAO; where none is named, the only one that the caller has.

    Raises Forbidden for one that the caller may not act as, or in.
    """
    principal, headers = acting(), getattr(context.request, "headers", {})
    agent_id = headers.get(AGENT_HEADER) or _meta(context, "agent_id") or principal.agents.sole
    microdao_id = (
        headers.get(MICRODAO_HEADER) or _meta(context, "microdao_id") or principal.microdaos.sole
    )
    principal.check(agent_id=agent_id, microdao_id=microdao_id)
    return agent_id, microdao_id


def _leave_refused(context: Context, error: DaarionError) -> None:
    """Leaves an error for the ingress, which records refusals: here it is a part of an answer."""
    setattr(context.request.state, REFUSED, error)


def _meta(context: Context, name: str) -> str | None:
    value = (context.meta or {}).get(name)
    return value if isinstance(value, str) else None


def _request_id(context: Context) -> str:
    state = getattr(context.request, "state", None)
    return getattr(state, "request_id", None) or f"mcp-{uuid4().hex}"


def _described(tool: Tool) -> types.Tool:
    """Returns the tool in MCP's form. Older protocol versions take only object output schemas."""
    definition = tool.definition
    return types.Tool(
        name=definition.id,
        title=definition.name,
        description=description_of(tool),
        # Arguments are objects, whatever the schema allows; clients refuse a listing with another
        # type.
        input_schema={**definition.input_schema, "type": "object"},
        output_schema=tool.object_output,
        annotations=types.ToolAnnotations(
            read_only_hint=definition.effect == "read",
            idempotent_hint=definition.effect != "write",
            open_world_hint=definition.executor != "python",
        ),
    )


def _answer(reply: CallAnswer) -> types.CallToolResult:
    """Returns the result as JSON text, and as structured content if it is an object.

    Clients check structured content against the listed schema, and fail without it. If no preview
    matches the schema, the whole is sent; above MAX_STRUCTURED_CHARS an error, since parsing it
    would block the event loop, from a thread as well.
    """
    result = reply.result
    if not result.ok:
        return types.CallToolResult(content=[_text(call_body(result))], is_error=True)
    if reply.structured is not None and len(reply.structured) > MAX_STRUCTURED_CHARS:
        error = (
            "the call succeeded; its result is too long to be sent whole: "
            "read it by its `result_ref`"
        )
        body = {**call_body(result), "error": error, "error_kind": "too_large"}
        return types.CallToolResult(content=[_text(body)], is_error=True)
    content = [_text(result.result)]
    if result.truncated:
        content.append(
            _text(
                {
                    "truncated": True,
                    "result_ref": result.result_ref
                    and result.result_ref.model_dump(exclude_none=True),
                }
            )
        )
    value = result.result if reply.structured is None else orjson.loads(reply.structured)
    return types.CallToolResult(
        content=[*content], structured_content=value if isinstance(value, dict) else None
    )


def _refused(error: str, kind: ErrorKind = "invalid_args") -> types.CallToolResult:
    body = {"ok": False, "error": error, "error_kind": kind, "retryable": False}
    return types.CallToolResult(content=[_text(body)], is_error=True)


def _text(value: Any) -> types.TextContent:
    return types.TextContent(type="text", text=orjson.dumps(value).decode())
