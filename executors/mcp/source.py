"""Turns an outside server's tools into definitions: its texts are data, rights are configured."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import mcp_types as types
from pydantic import ValidationError

from configs.tools import SourceSettings
from contracts.errors import DeadlineExceeded, InvalidRequest, Unavailable, UpstreamError
from contracts.events import EventLog
from contracts.identity import matches
from contracts.tools.api import MAX_NAME, TOOL_ID, ToolDefinition, plain_name
from executors.mcp.client import ToolListing
from executors.mcp.executor import McpToolExecutor
from executors.secrets import NotCalled

_UNFIT = re.compile(r"[^A-Za-z0-9-]+")
MAX_DESCRIPTION = 4_000
DIGEST_CHARS = 8

Check = Callable[[ToolDefinition], None]
"""Raises InvalidRequest for a definition that could never be served."""


def definitions_of(
    source: str, settings: SourceSettings, listing: ToolListing, check: Check, events: EventLog
) -> list[ToolDefinition]:
    """Returns the definitions of the selected tools; unusable ones are left out and reported."""
    found: dict[str, ToolDefinition] = {}
    refused = dict.fromkeys(
        listing.unreadable,
        "it is not a valid tool of the protocol: does its input schema describe an object?",
    )
    for tool in listing.tools:
        if not any(matches(pattern, tool.name) for pattern in settings.tools):
            continue
        try:
            definition = _definition(source, settings, tool)
            check(definition)
        except (ValidationError, InvalidRequest) as error:
            reason = (
                error.message
                if isinstance(error, InvalidRequest)
                else "its name, description or schema is out of bounds"
            )
            refused[tool.name] = reason
            continue
        if found.setdefault(definition.id, definition) is not definition:
            refused[tool.name] = f"the server lists another tool that is `{definition.id}`"
    for name, reason in refused.items():
        events.emit("tools.source_tool_refused", source=source, tool=name[:128], reason=reason)
    if not listing.complete:
        events.emit("tools.source_cut", source=source, max_tools=settings.max_tools)
    return list(found.values())


def tool_id_in(source: str, name: str) -> str:
    """Returns the id of a source's tool: `<source>.<name>` if that is an id.

    Otherwise invalid characters are replaced, and the name's digest is added, which keeps similar
    names apart. The id depends on the name alone.
    """
    plain = f"{source}.{name}"
    if TOOL_ID.fullmatch(plain) and len(plain_name(plain)) <= MAX_NAME:
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARS]
    room = MAX_NAME - len(plain_name(f"{source}.")) - DIGEST_CHARS - 1
    cleaned = _UNFIT.sub("_", name).strip("_")[:room].rstrip("_") or "tool"
    return f"{source}.{cleaned}-{digest}"


def _definition(source: str, settings: SourceSettings, tool: types.Tool) -> ToolDefinition:
    values: dict[str, Any] = {
        "id": tool_id_in(source, tool.name),
        "name": (tool.title or tool.name)[:200],
        "description": (tool.description or "")[:MAX_DESCRIPTION],
        "input_schema": tool.input_schema,
        "output_schema": tool.output_schema,
        "executor": "mcp",
        "target": f"{source}:{tool.name}",
        "allowed_agents": settings.allowed_agents,
        "timeout_s": settings.timeout_s,
        "effect": settings.effects.get(tool.name, settings.effect),
    }
    return ToolDefinition.model_validate(values)


class McpSource:
    """Implements ToolSource over one configured server."""

    def __init__(
        self,
        name: str,
        settings: SourceSettings,
        executor: McpToolExecutor,
        check: Check,
        events: EventLog,
    ) -> None:
        self.refresh_s = settings.refresh_s
        self._name = name
        self._settings = settings
        self._executor = executor
        self._check = check
        self._events = events

    async def definitions(self) -> Sequence[ToolDefinition]:
        """Returns the definitions of what the server offers now.

        Raises:
            Unavailable: it cannot be reached, or a secret is missing or withheld.
            UpstreamError: its answer breaks the protocol.
            DeadlineExceeded: it does not answer in time.
        """
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                listing = await self._executor.client(self._name).list_tools(
                    self._settings.max_tools
                )
        except NotCalled as error:
            raise Unavailable(str(error)) from None
        except TimeoutError:
            raise DeadlineExceeded("the MCP source did not answer in time") from None
        except Exception as error:
            raise UpstreamError("the MCP source cannot be listed") from error
        return definitions_of(self._name, self._settings, listing, self._check, self._events)
