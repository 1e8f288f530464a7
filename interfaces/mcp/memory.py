"""The memory as an MCP server: the use cases, shapes and checks of the HTTP routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mcp_types as types
from pydantic import BaseModel

from contracts.access.principals import acting
from contracts.errors import DaarionError, Forbidden, InvalidRequest, NotFound
from contracts.events import EventLog
from contracts.memory.api import (
    MAX_QUERY_CHARS,
    DeleteResponse,
    ForgetRequest,
    ItemsFilter,
    ItemsPage,
    QueryRequest,
    QueryResponse,
    StoreRequest,
    StoreResponse,
)
from contracts.memory.fields import MAX_CONTENT_CHARS, MAX_LIMIT, MAX_META_CHARS
from interfaces.http.base.claims import TENANT, check_body
from interfaces.http.base.errors import as_leaf
from interfaces.http.memory import MAX_BODY_BYTES, MemoryUseCases
from interfaces.mcp.server import (
    MAX_STRUCTURED_CHARS,
    Context,
    McpServer,
    identity_of,
    leave_refused,
    request_id_of,
    text_of,
)

NAME = "daarion-memory"
INSTRUCTIONS = (
    "The long-term memory of an agent. Recall before answering what an earlier conversation may "
    "know; store what will be needed later. With a key for one agent in one microDAO, leave out "
    "`agent_id` and `microdao_id`; otherwise send them as arguments, or as the headers X-Agent-Id "
    "and X-Microdao-Id."
)
OWNER = {
    "agent_id": "Whose memory: the agent. Leave it out with a key for one agent.",
    "microdao_id": "Whose memory: the agent's microDAO. Leave it out with a key for one microDAO.",
}
NOT_LISTED = frozenset({"kind_filter", "metadata", "explain", "timeout_s", "wait_indexed_s"})
"""Fields for programs, and other names of fields; models need not read about them."""
NARROWED = (
    "Narrow it by `channel_id`, by `since` (inclusive) and `until` (exclusive), which are times "
    "with a time zone, such as 2026-05-01T00:00:00Z"
)

Run = Callable[[MemoryUseCases, Any, str], Awaitable[BaseModel]]
"""Takes the request and the request id."""


@dataclass(frozen=True)
class MemoryTool:
    """One tool: a use case between the shapes of its HTTP route."""

    name: str
    description: str
    request: type[BaseModel]
    answer: type[BaseModel]
    run: Run
    hints: types.ToolAnnotations

    @cached_property
    def described(self) -> types.Tool:
        """The tool in MCP's form; its arguments are the fields of the request."""
        schema = self.request.model_json_schema()
        fields = {
            name: field for name, field in schema["properties"].items() if name not in NOT_LISTED
        }
        for name, description in OWNER.items():
            fields[name] = {**fields[name], "description": description}
        if "content" in fields:
            fields["content"] = {"anyOf": [{"type": "string"}, fields["content"]]}
        required = [name for name in schema["required"] if name not in OWNER]
        schema |= {"description": "", "properties": fields, "required": required}
        return types.Tool(
            name=self.name,
            description=self.description,
            input_schema=schema,
            output_schema=self.answer.model_json_schema(),
            annotations=self.hints,
        )

    def read(self, owner: Mapping[str, str | None], arguments: Mapping[str, Any]) -> Any:
        """Returns the request; null counts as absent, a `content` that is a text as `{text}`.

        Raises:
            Forbidden: the caller may not act for the `owner`, or for the one that is named.
            InvalidRequest: nobody is named.
            ValidationError: an argument does not fit.
        """
        fields = {**owner, **{name: it for name, it in arguments.items() if it is not None}}
        if isinstance(fields.get("content"), str):
            fields["content"] = {"text": fields["content"]}
        check_body(acting(), fields)
        if missing := [name for name in TENANT if fields[name] is None]:
            raise InvalidRequest(
                f"{' and '.join(missing)}: required with this key, which is not for a single one; "
                "give them as arguments, or as the headers X-Agent-Id and X-Microdao-Id"
            )
        return self.request.model_validate(fields)


TOOLS = {
    tool.name: tool
    for tool in (
        MemoryTool(
            "store",
            "Stores something to remember: what was said, decided or done. `content` is a text, or "
            "an object with texts in it, such as {user_message, agent_reply}; at most "
            f"{MAX_CONTENT_CHARS:,} characters. `kind` is what it is: conversation, kb (a fact), "
            "task or dao-event. `speaker` is who says a text, `channel_id` the conversation that "
            "it belongs to, `created_at` when it happened, with a time zone (by default now), "
            f"`meta` an object of your own with at most {MAX_META_CHARS:,} characters. Answers "
            "with the memory's `id`. Storing "
            "the same again changes nothing.",
            StoreRequest,
            StoreResponse,
            lambda cases, request, _: cases.remembering.store(request, None),
            types.ToolAnnotations(
                read_only_hint=False,
                destructive_hint=False,
                idempotent_hint=True,
                open_world_hint=False,
            ),
        ),
        MemoryTool(
            "recall",
            "Finds what the memory and the knowledge base know about a question, the best first. "
            f"`query` is the question in your words, at most {MAX_QUERY_CHARS:,} characters, "
            f"`limit` the most items to answer with (1 to {MAX_LIMIT}, by default 5). {NARROWED}, "
            "and by `kinds`. `score` (0 to 1) orders the items of this answer; "
            "`meta` says where an item comes from and when it was. `degraded` names ways of "
            "searching that failed.",
            QueryRequest,
            QueryResponse,
            lambda cases, request, request_id: cases.recall.query(request, request_id),
            types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
        ),
        MemoryTool(
            "list",
            f"Lists stored memories, the newest first, `limit` on a page (1 to {MAX_LIMIT}, by "
            "default 50). The `next_cursor` of a page is the `cursor` of the next one, with the "
            f"same other arguments; the last page has none. {NARROWED}, and by `kind`.",
            ItemsFilter,
            ItemsPage,
            lambda cases, request, _: cases.records.page(request),
            types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
        ),
        MemoryTool(
            "forget",
            "Deletes one memory for ever. `id` is that of an item of `recall` or `list`. Documents "
            "of the knowledge base (ids that begin with kb-) are not deleted by it.",
            ForgetRequest,
            DeleteResponse,
            lambda cases, request, _: cases.remembering.forget(request, request.id),
            types.ToolAnnotations(
                read_only_hint=False,
                destructive_hint=True,
                idempotent_hint=True,
                open_world_hint=False,
            ),
        ),
    )
}


class MemoryMcpServer(McpServer):
    """Tools that store, find, list and delete the memories of the caller's agent.

    Errors are answered as results of the tool, in the envelope of the HTTP routes.
    """

    def __init__(self, cases: Callable[[], MemoryUseCases], events: EventLog) -> None:
        """`cases` is called at each request."""
        super().__init__(
            NAME,
            INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            max_body_bytes=MAX_BODY_BYTES,
        )
        self._cases = cases
        self._events = events

    async def _list_tools(
        self, _context: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool.described for tool in TOOLS.values()])

    async def _call_tool(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            return await self._answered(context, params)
        except Exception as error:  # noqa: BLE001  # the library would send its text
            return self._refused(context, error)

    async def _answered(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = TOOLS.get(params.name)
        if tool is None:
            raise NotFound(f"no such tool: there are {', '.join(TOOLS)}")
        agent_id, microdao_id = identity_of(context)
        owner = {"agent_id": agent_id, "microdao_id": microdao_id}
        request = tool.read(owner, params.arguments or {})
        answer = await tool.run(self._cases(), request, request_id_of(context))
        body = answer.model_dump(mode="json", exclude_none=True)
        content = text_of(body)
        if len(content.text) > MAX_STRUCTURED_CHARS:
            raise InvalidRequest(
                f"the answer has more than {MAX_STRUCTURED_CHARS:,} characters: give a smaller "
                "`limit`"
            )
        return types.CallToolResult(content=[content], structured_content=body)

    def _refused(self, context: Context, error: Exception) -> types.CallToolResult:
        request_id, leaf = request_id_of(context), as_leaf(error)
        if isinstance(leaf, Forbidden):
            leave_refused(context, leaf)
        if leaf.status >= 500 and not isinstance(error, DaarionError):
            self._events.emit(
                "http.defect",
                request_id=request_id,
                path=context.request.url.path,
                error=type(error).__name__,
                exc_info=error,
            )
        return types.CallToolResult(content=[text_of(leaf.envelope(request_id))], is_error=True)
