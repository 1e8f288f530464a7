"""One outside MCP server: its tools listed, one of them called. A connection lives as long as the question."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import mcp_types as types
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from pydantic import TypeAdapter

from contracts.tools import EgressRule
from executors.http.connections import Connections
from executors.http.egress import EgressPolicy
from executors.mcp.transport import PolicedTransport

MAX_PAGES = 50
CLIENT = types.Implementation(name="daarion-toolcore", version="0.1.0")
_RESULT: TypeAdapter[types.CallToolResult] = TypeAdapter(types.CallToolResult)


@dataclass(frozen=True)
class McpServer:
    """Where a source is and what may be sent to it; `headers` hold its secrets."""

    url: str
    headers: dict[str, str]
    egress: tuple[EgressRule, ...]


class McpClient:
    """Talks to one server under the egress policy."""

    def __init__(self, server: McpServer, connections: Connections, ceiling: tuple[EgressRule, ...], *, max_bytes: int) -> None:
        self._server = server
        self._connections = connections
        self._policy = EgressPolicy(server.egress, ceiling)
        self._max_bytes = max_bytes

    async def list_tools(self, limit: int) -> list[types.Tool]:
        """Returns at most `limit` tools. Raises what the library and its transport raise."""
        tools: list[types.Tool] = []
        cursor: str | None = None
        async with self._session() as client:
            for _ in range(MAX_PAGES):
                page = await client.list_tools(cursor=cursor)
                tools += page.tools
                cursor = page.next_cursor
                if cursor is None or len(tools) >= limit:
                    break
        return tools[:limit]

    async def call(self, name: str, arguments: dict[str, Any], meta: dict[str, Any]) -> types.CallToolResult:
        """Calls one tool. Raises what the library and its transport raise.

        The library's own check of results is left out: it would run the server's schema without bounds. Toolcore checks.
        """
        params = types.CallToolRequestParams(name=name, arguments=arguments, _meta=meta)
        async with self._session() as client:
            return await client.session.send_request(types.CallToolRequest(params=params), _RESULT)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Client]:
        transport = PolicedTransport(self._connections, self._policy, max_bytes=self._max_bytes)
        async with (
            httpx2.AsyncClient(transport=transport, headers=self._server.headers, timeout=None, trust_env=False) as http,
            Client(streamable_http_client(self._server.url, http_client=http), client_info=CLIENT, cache=None) as client,
        ):
            yield client
