"""Lists and calls the tools of one outside MCP server, over a new connection each time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import mcp_types as types
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from pydantic import TypeAdapter

from contracts.tools.api import EgressRule
from executors.http.connections import Connections
from executors.http.egress import EgressPolicy
from executors.mcp.listing import ListingFilter
from executors.mcp.transport import PolicedTransport
from executors.redaction import Redactor

MAX_PAGES = 50
CLIENT = types.Implementation(name="daarion-toolcore", version="0.1.0")
_RESULT: TypeAdapter[types.CallToolResult] = TypeAdapter(types.CallToolResult)
_PAGE: TypeAdapter[types.ListToolsResult] = TypeAdapter(types.ListToolsResult)


@dataclass(frozen=True)
class McpServer:
    """A source's address. `headers` hold its secrets; `redactor` finds them in its answers."""

    url: str
    headers: dict[str, str]
    egress: tuple[EgressRule, ...]
    redactor: Redactor


@dataclass
class ToolListing:
    """A server's tools. `unreadable` names invalid entries; `complete`: the server has no more."""

    tools: list[types.Tool] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    complete: bool = False


class McpClient:
    """Talks to one server under the egress policy."""

    def __init__(
        self,
        server: McpServer,
        connections: Connections,
        ceiling: tuple[EgressRule, ...],
        *,
        max_bytes: int,
    ) -> None:
        self._server = server
        self.redactor = server.redactor
        self._connections = connections
        self._policy = EgressPolicy(server.egress, ceiling)
        self._max_bytes = max_bytes

    async def list_tools(self, limit: int) -> ToolListing:
        """Returns at most `limit` tools, secrets redacted.

        Raises errors of the library and its transport.
        """
        listings, found = ListingFilter(limit), ToolListing()
        cursor: str | None = None
        async with self._session(listings) as client:
            listings.version = client.protocol_version
            for _ in range(MAX_PAGES):
                request = types.ListToolsRequest(params=types.PaginatedRequestParams(cursor=cursor))
                page = await client.session.send_request(request, _PAGE)
                found.tools += map(self._redacted, page.tools)
                cursor = page.next_cursor
                if cursor is None or len(found.tools) > limit or listings.given_up:
                    break
        found.unreadable = listings.unreadable
        found.complete = cursor is None and len(found.tools) <= limit and not listings.given_up
        del found.tools[limit:]
        return found

    def _redacted(self, tool: types.Tool) -> types.Tool:
        return types.Tool.model_validate(
            self.redactor.json(tool.model_dump(by_alias=True)), by_name=False
        )

    async def call(
        self, name: str, arguments: dict[str, Any], meta: dict[str, Any]
    ) -> types.CallToolResult:
        """Calls one tool. Raises errors of the library and its transport.

        Skips the library's own check of results, which would run the server's schema without
        bounds; Toolcore checks them.
        """
        params = types.CallToolRequestParams(name=name, arguments=arguments, _meta=meta)
        async with self._session(ListingFilter(0)) as client:
            return await client.session.send_request(types.CallToolRequest(params=params), _RESULT)

    @asynccontextmanager
    async def _session(self, listings: ListingFilter) -> AsyncIterator[Client]:
        transport = PolicedTransport(self._connections, self._policy, max_bytes=self._max_bytes)
        async with httpx2.AsyncClient(
            transport=transport, headers=self._server.headers, timeout=None, trust_env=False
        ) as http:
            streams = listings.around(streamable_http_client(self._server.url, http_client=http))
            async with Client(streams, client_info=CLIENT, cache=None) as client:
                yield client
