"""Lists and calls the tools of one outside MCP server, over a new connection each time.

The library accepts or refuses a whole listing, so each entry is checked before, by the same rules:
one bad tool must not cost its whole server. Checks run on the event loop, so a page is read only up
to one tool above the limit, or up to MAX_UNREADABLE bad entries.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import mcp_types as types
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import JSONRPCResponse
from mcp_types.methods import validate_server_result
from pydantic import TypeAdapter, ValidationError

from executors.http.connections import Connections
from executors.http.egress import EgressPolicy
from executors.mcp.transport import PolicedTransport
from executors.redaction import Redactor

LIST = "tools/list"
MAX_UNREADABLE = 100
MAX_PAGES = 50
CLIENT = types.Implementation(name="daarion-toolcore", version="0.1.0")
_RESULT: TypeAdapter[types.CallToolResult] = TypeAdapter(types.CallToolResult)
_PAGE: TypeAdapter[types.ListToolsResult] = TypeAdapter(types.ListToolsResult)


class ListingFilter:
    """Filters listings once the protocol's `version` is set; `unreadable` names removed entries.

    `limit` bounds the tools of a page. `given_up`: a page had too many bad entries to be read to
    its end.
    """

    def __init__(self, limit: int) -> None:
        self.version: str | None = None
        self.unreadable: list[str] = []
        self.given_up = False
        self._limit = limit

    @asynccontextmanager
    async def around(
        self, streams: AbstractAsyncContextManager[Any]
    ) -> AsyncIterator[tuple[_Filtered, Any]]:
        """Yields a transport's streams, listings filtered."""
        async with streams as (read, write):
            yield _Filtered(read, self), write

    def filter(self, item: Any) -> None:
        """Removes unreadable entries from a message that is a listing."""
        message = getattr(item, "message", None)
        if (
            self.version is None
            or not isinstance(message, JSONRPCResponse)
            or not isinstance(message.result.get("tools"), list)
        ):
            return
        page, entries = message.result, message.result["tools"]
        if not _is_readable(self.version, {**page, "tools": []}):
            return  # not the entries' fault: the library refuses the page
        page["tools"] = []
        for entry in entries:
            if len(page["tools"]) > self._limit:
                break
            if _is_readable(self.version, {**page, "tools": [entry]}):
                page["tools"].append(entry)
            elif len(self.unreadable) == MAX_UNREADABLE:
                self.given_up = True
                break
            else:
                name = entry.get("name") if isinstance(entry, dict) else None
                self.unreadable.append(name if isinstance(name, str) else "?")


class _Filtered:
    """A read stream of the library; other attributes are the wrapped stream's own."""

    def __init__(self, stream: Any, listings: ListingFilter) -> None:
        self._stream = stream
        self._listings = listings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> _Filtered:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._stream.__aexit__(*raised)

    def __aiter__(self) -> _Filtered:
        return self

    async def __anext__(self) -> Any:
        item = await self._stream.__anext__()
        self._listings.filter(item)
        return item


def _is_readable(version: str, page: dict[str, Any]) -> bool:
    try:
        validate_server_result(LIST, version, page)
    except ValidationError:
        return False
    return True


@dataclass
class ToolListing:
    """A server's tools. `unreadable` names invalid entries; `complete`: the server has no more."""

    tools: list[types.Tool] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True)
class McpClient:
    """Talks to one server under the egress policy.

    `headers` hold its secrets, which `redactor` finds in its answers. `max_bytes` bounds an answer.
    """

    url: str
    headers: dict[str, str]
    redactor: Redactor
    policy: EgressPolicy
    connections: Connections
    max_bytes: int

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
        transport = PolicedTransport(self.connections, self.policy, max_bytes=self.max_bytes)
        async with httpx2.AsyncClient(
            transport=transport, headers=self.headers, timeout=None, trust_env=False
        ) as http:
            streams = listings.around(streamable_http_client(self.url, http_client=http))
            async with Client(streams, client_info=CLIENT, cache=None) as client:
                yield client
