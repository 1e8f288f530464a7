"""McpToolExecutor: a tool of an outside MCP server, called under the same deadline, bounds and secrets as any other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx2
import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from configs.tools import SourceSettings
from contracts.events import EventLog
from contracts.tools.api import EgressRule, Execution, Outcome, SecretSource, SecretWithheld
from executors.http.connections import Connections
from executors.mcp.client import McpClient, McpServer
from executors.mcp.transport import EgressRefused
from executors.redaction import Redactor

MAX_ERROR_CHARS = 1_000
MAX_LIST_BYTES = 4 << 20


class SourceUnavailable(Exception):
    """The source or a secret of it is not configured. The text says which."""


class McpToolExecutor:
    """Implements the ToolExecutor port for `executor: mcp`; targets are `source:tool`."""

    def __init__(
        self,
        sources: Mapping[str, SourceSettings],
        secrets: SecretSource,
        events: EventLog,
        *,
        ceiling: tuple[EgressRule, ...] = (),
        connections: Connections | None = None,
    ) -> None:
        self._sources = sources
        self._secrets = secrets
        self._events = events
        self._ceiling = ceiling
        self._connections = connections or Connections()

    def reconfigure(
        self, sources: Mapping[str, SourceSettings], ceiling: tuple[EgressRule, ...]
    ) -> None:
        """Takes changed sources; calls under way end with the ones they began with."""
        self._sources, self._ceiling = sources, ceiling

    def client(self, source: str, max_bytes: int = MAX_LIST_BYTES) -> McpClient:
        """Returns a client of the source. Raises SourceUnavailable or SecretWithheld."""
        settings = self._sources.get(source)
        if settings is None:
            raise SourceUnavailable(f"the MCP source `{source}` is not configured")
        headers, values = {}, []
        for use in settings.secrets:
            value = self._secrets.value(use.name, f"{source}.*", settings.url)
            if value is not None:
                values.append(value)
                headers[use.header] = use.prefix + value
            elif use.required:
                raise SourceUnavailable(
                    f"the secret `{use.name}` of the MCP source is not configured"
                )
        server = McpServer(settings.url, headers, tuple(settings.egress), Redactor(values))
        return McpClient(server, self._connections, self._ceiling, max_bytes=max_bytes)

    async def execute(self, execution: Execution) -> Outcome:
        """Calls the tool. Being cancelled closes the connection."""
        started = time.monotonic()
        outcome = await self._execute(execution)
        return replace(outcome, duration_ms=(time.monotonic() - started) * 1000)

    async def close(self) -> None:
        """Closes every connection."""
        await self._connections.close()

    async def _execute(self, execution: Execution) -> Outcome:
        source, _, name = execution.tool.target.partition(":")
        possible = execution.tool.effect != "read"
        try:
            client = self.client(source, execution.tool.max_result_bytes + MAX_LIST_BYTES)
        except SourceUnavailable as error:
            return Outcome(False, error_kind="unavailable", error=str(error), attempts=0)
        except SecretWithheld as error:
            return Outcome(False, error_kind="denied", error=str(error), attempts=0)
        meta = {"idempotency_key": execution.idempotency_key}
        try:
            async with asyncio.timeout(execution.deadline.remaining()):
                result = await client.call(name, execution.args, meta)
        except TimeoutError:
            text = "the MCP server did not answer in time"
            return Outcome(
                False, error_kind="timeout", error=text, retryable=True, effect_possible=possible
            )
        except Exception as raised:  # noqa: BLE001  # the library wraps what its task groups caught in exception groups
            return self._failed(execution, _innermost(raised), client.redactor, possible=possible)
        # In a thread: an answer may be megabytes.
        return await asyncio.to_thread(_outcome, result, client.redactor, possible=possible)

    def _failed(
        self, execution: Execution, error: BaseException, redactor: Redactor, *, possible: bool
    ) -> Outcome:
        self._events.emit("tool.mcp_failed", tool_id=execution.tool.id, error=type(error).__name__)
        if isinstance(error, EgressRefused):
            return Outcome(False, error_kind="denied", error=_shown(str(error), redactor))
        if isinstance(error, httpx2.ConnectError):
            return Outcome(
                False,
                error_kind="unavailable",
                error="the MCP server cannot be reached",
                retryable=True,
            )
        if isinstance(error, MCPError):
            text = f"the MCP server refused: {_shown(str(error), redactor)}"
            return Outcome(False, error_kind="upstream", error=text, effect_possible=possible)
        if isinstance(error, ValidationError):
            text = "the MCP server's answer is not what the protocol allows"
            return Outcome(False, error_kind="invalid_result", error=text, effect_possible=possible)
        text = "the exchange with the MCP server broke off"
        return Outcome(
            False, error_kind="upstream", error=text, retryable=True, effect_possible=possible
        )


def _outcome(result: types.CallToolResult, redactor: Redactor, *, possible: bool) -> Outcome:
    if result.is_error:
        text = " ".join(
            block.text for block in result.content if isinstance(block, types.TextContent)
        )
        return Outcome(
            False,
            error_kind="upstream",
            error=_shown(text, redactor) or "the tool failed",
            effect_possible=possible,
        )
    return Outcome(True, result=redactor.json(content_of(result)))


def content_of(result: types.CallToolResult) -> Any:
    """The structured content where there is one; else the text of a text-only answer; else its blocks."""
    if result.structured_content is not None:
        return result.structured_content
    texts = [block.text for block in result.content if isinstance(block, types.TextContent)]
    if len(texts) == len(result.content):
        return "\n".join(texts)
    return [
        block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content
    ]


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


def _shown(text: str, redactor: Redactor) -> str:
    """A bounded text; secrets leave it before it is cut, since half a secret is not found."""
    return redactor.text(text)[:MAX_ERROR_CHARS]
