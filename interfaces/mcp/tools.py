"""The registry as an MCP server: the same catalogue, policy and ledger.

The `_meta` of a request may also hold `call_id`.
"""

from __future__ import annotations

import mcp_types as types
import orjson
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from contracts.access.principals import acting
from contracts.errors import DaarionError, Forbidden, InvalidRequest
from contracts.tools.api import ErrorKind, ToolCallRequest
from interfaces.http.base.errors import invalid_body
from interfaces.mcp.server import (
    MAX_STRUCTURED_CHARS,
    Context,
    McpServer,
    identity_of,
    leave_refused,
    meta_of,
    request_id_of,
    text_of,
)
from interfaces.tools.answers import call_body
from services.tools.application import Toolcore
from services.tools.catalog import description_of
from services.tools.outcomes import CallAnswer
from services.tools.registry import Tool

NAME = "daarion-tools"
INSTRUCTIONS = (
    "Tools of DAARION agents. Calls run on behalf of an agent in a microDAO: name them with every "
    "request, in X-Agent-Id and X-Microdao-Id, unless your key is for one of each alone."
)
MAX_BODY_BYTES = 2 << 20


class ToolMcpServer(McpServer):
    """Lists and calls the tools that the caller's agent may use."""

    def __init__(self, toolcore: Toolcore) -> None:
        super().__init__(
            NAME,
            INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            max_body_bytes=MAX_BODY_BYTES,
        )
        self._toolcore = toolcore

    async def _list_tools(
        self, context: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        try:
            agent_id, microdao_id = identity_of(context)
            tools = self._toolcore.catalog().allowed(agent_id, microdao_id)
        except DaarionError as error:
            leave_refused(context, error)
            raise MCPError(types.INTERNAL_ERROR, error.message) from None
        return types.ListToolsResult(tools=[_described(tool) for tool in tools])

    async def _call_tool(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            agent_id, microdao_id = identity_of(context)
            acting().check(tool_id=params.name)
        except (Forbidden, InvalidRequest) as error:
            leave_refused(context, error)
            return _refused(
                error.message, "denied" if isinstance(error, Forbidden) else "invalid_args"
            )
        wanted = {
            "tool_id": params.name,
            "agent_id": agent_id,
            "microdao_id": microdao_id,
            "args": params.arguments or {},
        }
        if missing := [f"`{name}`" for name in ("agent_id", "microdao_id") if not wanted[name]]:
            return _refused(
                f"give {' and '.join(missing)}: in the headers X-Agent-Id and X-Microdao-Id, or in "
                "`_meta`"
            )
        try:
            request = ToolCallRequest.model_validate(
                {**wanted, "call_id": meta_of(context, "call_id")}
            )
        except ValidationError as error:
            return _refused(invalid_body(error).message)
        reply = await self._toolcore.calls().call(
            request, via="mcp", request_id=request_id_of(context)
        )
        return _answer(reply)


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
        return types.CallToolResult(content=[text_of(call_body(result))], is_error=True)
    if reply.structured is not None and len(reply.structured) > MAX_STRUCTURED_CHARS:
        error = (
            "the call succeeded; its result is too long to be sent whole: "
            "read it by its `result_ref`"
        )
        body = {**call_body(result), "error": error, "error_kind": "too_large"}
        return types.CallToolResult(content=[text_of(body)], is_error=True)
    content = [text_of(result.result)]
    if result.truncated:
        content.append(
            text_of(
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
    return types.CallToolResult(content=[text_of(body)], is_error=True)
