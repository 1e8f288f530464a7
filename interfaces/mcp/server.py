"""An MCP server over streamable HTTP, and what its handlers know of a request.

Stateless, with JSON answers: any replica serves any request. The headers `X-Agent-Id` and
`X-Microdao-Id` name the caller, or the keys `agent_id` and `microdao_id` of a request's `_meta`.
A call's `_meta.traceparent` is the trace that it continues.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import mcp_types as types
import orjson
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Receive, Scope, Send

from common import tracing
from contracts.access.principals import acting
from contracts.errors import DaarionError, MethodNotAllowed, Unavailable
from interfaces.http.base.audit import REFUSED
from interfaces.http.base.bodies import require_json

VERSION = "0.1.0"
MAX_STRUCTURED_CHARS = 1 << 20
"""Characters of a result's JSON, which clients parse at once."""
AGENT_HEADER = "x-agent-id"
MICRODAO_HEADER = "x-microdao-id"
START_TIMEOUT_S = 10.0

Context = Any
"""The library's request context: `request` is the HTTP request, `meta` the call's `_meta`."""
ListTools = Callable[
    [Context, types.PaginatedRequestParams | None], Awaitable[types.ListToolsResult]
]
CallTool = Callable[[Context, types.CallToolRequestParams], Awaitable[types.CallToolResult]]


class McpServer:
    """An ASGI application below the ingress, with a task for the library's sessions."""

    def __init__(
        self,
        name: str,
        instructions: str,
        *,
        on_list_tools: ListTools,
        on_call_tool: CallTool,
        max_body_bytes: int,
    ) -> None:

        async def call_tool(
            context: Context, params: types.CallToolRequestParams
        ) -> types.CallToolResult:
            named = meta_of(context, "traceparent")
            parent = None if named is None else tracing.continued(named)
            with tracing.span("tools/call", tracing.SpanKind.SERVER, parent=parent):
                return await on_call_tool(context, params)

        server: Server[Any] = Server(
            name,
            version=VERSION,
            instructions=instructions,
            on_list_tools=on_list_tools,
            on_call_tool=call_tool,
        )
        self._name = name
        self._manager = StreamableHTTPSessionManager(
            server, json_response=True, stateless=True, max_request_body_size=max_body_bytes
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
        self._task = asyncio.create_task(self._run(), name=f"mcp:{self._name}")
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


def identity_of(context: Context) -> tuple[str | None, str | None]:
    """Returns agent and microDAO; where none is named, the only one that the caller has.

    Raises Forbidden for one that the caller may not act as, or in.
    """
    principal, headers = acting(), getattr(context.request, "headers", {})
    agent_id = headers.get(AGENT_HEADER) or meta_of(context, "agent_id") or principal.agents.sole
    microdao_id = (
        headers.get(MICRODAO_HEADER) or meta_of(context, "microdao_id") or principal.microdaos.sole
    )
    principal.check(agent_id=agent_id, microdao_id=microdao_id)
    return agent_id, microdao_id


def leave_refused(context: Context, error: DaarionError) -> None:
    """Leaves an error for the ingress, which records refusals: here it is a part of an answer."""
    setattr(context.request.state, REFUSED, error)


def meta_of(context: Context, name: str) -> str | None:
    """Returns a text of the request's `_meta`."""
    value = (context.meta or {}).get(name)
    return value if isinstance(value, str) else None


def request_id_of(context: Context) -> str:
    """Returns the id that the ingress gave the request."""
    state = getattr(context.request, "state", None)
    return getattr(state, "request_id", None) or f"mcp-{uuid4().hex}"


def text_of(value: Any) -> types.TextContent:
    """Returns a value as JSON text."""
    return types.TextContent(type="text", text=orjson.dumps(value).decode())
