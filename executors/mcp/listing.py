"""Removes invalid entries from a listing, so that one bad tool does not cost its whole server.

The library accepts or refuses a whole listing, so each entry is checked before, by the same rules.
Checks run on the event loop, so a page is read only up to one tool above the limit, or up to
MAX_UNREADABLE bad entries.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from mcp_types import JSONRPCResponse
from mcp_types.methods import validate_server_result
from pydantic import ValidationError

LIST = "tools/list"
MAX_UNREADABLE = 100


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
