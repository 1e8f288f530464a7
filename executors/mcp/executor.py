"""McpToolExecutor: calls a tool of an outside MCP server.

Deadline, bounds and secrets apply as for any other tool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx2
import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from configs.tools import SourceSettings
from contracts.events import EventLog
from contracts.tools.api import EgressRule, Execution, Outcome, SecretSource
from executors.http.connections import Connections
from executors.http.egress import EgressPolicy
from executors.mcp.client import McpClient
from executors.mcp.transport import EgressRefused
from executors.redaction import Redactor
from executors.secrets import NotCalled, find_secrets

MAX_ERROR_CHARS = 1_000
MAX_LIST_BYTES = 4 << 20


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

    def client(self, source: str, max_bytes: int = MAX_LIST_BYTES) -> McpClient:
        """Returns a client of the source. Raises NotCalled."""
        settings = self._sources.get(source)
        if settings is None:
            raise NotCalled("unavailable", f"the MCP source `{source}` is not configured")
        secrets = find_secrets(self._secrets, settings.secrets, f"{source}.*", settings.url)
        headers = {use.header: use.prefix + value for use, value in secrets}
        redactor = Redactor(value for _, value in secrets)
        policy = EgressPolicy(tuple(settings.egress), self._ceiling)
        return McpClient(settings.url, headers, redactor, policy, self._connections, max_bytes)

    async def close(self) -> None:
        """Closes every connection."""
        await self._connections.close()

    async def execute(self, execution: Execution) -> Outcome:
        """Calls the tool. Being cancelled closes the connection."""
        source, _, name = execution.tool.target.partition(":")
        try:
            client = self.client(source, execution.tool.max_result_bytes + MAX_LIST_BYTES)
        except NotCalled as refused:
            return refused.outcome()
        meta = {"idempotency_key": execution.idempotency_key}
        try:
            async with asyncio.timeout(execution.deadline.remaining()):
                result = await client.call(name, execution.args, meta)
        except TimeoutError:
            error = "the MCP server did not answer in time"
            outcome = Outcome(False, error_kind="timeout", error=error, retryable=True)
        except Exception as raised:  # noqa: BLE001  # the library wraps errors in exception groups
            cause = _innermost(raised)
            self._events.emit(
                "tool.mcp_failed", tool_id=execution.tool.id, error=type(cause).__name__
            )
            outcome = _failure(cause, client.redactor)
            if isinstance(cause, httpx2.ConnectError):  # nothing was sent
                return outcome
        else:
            # In a thread: an answer may be megabytes.
            outcome = await asyncio.to_thread(_outcome, result, client.redactor)
        has_effect = execution.tool.effect != "read"
        return replace(outcome, effect_possible=has_effect and not outcome.ok)


def _failure(error: BaseException, redactor: Redactor) -> Outcome:
    if isinstance(error, EgressRefused):
        return Outcome(False, error_kind="denied", error=_shown(str(error), redactor))
    if isinstance(error, httpx2.ConnectError):
        text = "the MCP server cannot be reached"
        return Outcome(False, error_kind="unavailable", error=text, retryable=True)
    if isinstance(error, MCPError):
        text = f"the MCP server refused: {_shown(str(error), redactor)}"
        return Outcome(False, error_kind="upstream", error=text)
    if isinstance(error, ValidationError):
        text = "the MCP server's answer is not what the protocol allows"
        return Outcome(False, error_kind="invalid_result", error=text)
    text = "the connection to the MCP server broke off"
    return Outcome(False, error_kind="upstream", error=text, retryable=True)


def _outcome(result: types.CallToolResult, redactor: Redactor) -> Outcome:
    if result.is_error:
        text = " ".join(
            block.text for block in result.content if isinstance(block, types.TextContent)
        )
        error = _shown(text, redactor) or "the tool failed"
        return Outcome(False, error_kind="upstream", error=error)
    return Outcome(True, result=redactor.json(content_of(result)))


def content_of(result: types.CallToolResult) -> Any:
    """Returns the structured content, else the text of a text-only answer, else its blocks."""
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
    """Returns a bounded text. Secrets are redacted first: part of a secret would not be found."""
    return redactor.text(text)[:MAX_ERROR_CHARS]
