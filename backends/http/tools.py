"""The AgentTools port: calls Toolcore through the ingress."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from cachetools import LRUCache
from pydantic import BaseModel, ValidationError

from backends.http.client import Credentials, JsonAnswer, ServiceClient
from common.retry import retry
from contracts.access.principals import acting
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.identity import Tenant
from contracts.tools.api import ErrorKind, ToolCallRequest, ToolCallResult, ToolDefinition

PREFIX = "/internal/tools"
FRESH_S = 15.0
STALE_S = 600.0
MAX_KEPT = 1_000
LIST_PATIENCE_S = 5.0


class _Listed(BaseModel):
    """The part of a listing that is read; its rows hold more than definitions."""

    tools: list[dict[str, Any]]


class ToolsClient(ServiceClient):
    """Lists and calls tools.

    Listings are cached for `FRESH_S`, and for `STALE_S` while Toolcore is unavailable; without one,
    Toolcore is retried for `LIST_PATIENCE_S`. A call with a `call_id` is retried for `patience_s`
    while Toolcore is unavailable or the same call is in progress: it runs once under that id.
    """

    service = "Toolcore"

    def __init__(self, base_url: str, credentials: Credentials, *, patience_s: float) -> None:
        super().__init__(base_url, credentials, patience_s=patience_s)
        self._kept = LRUCache[tuple[str, str, str], tuple[float, list[ToolDefinition]]](MAX_KEPT)

    async def allowed(self, tenant: Tenant, deadline: Deadline) -> list[ToolDefinition]:
        """Returns the tools that the agent may call. Raises DaarionError."""
        key = (acting().name, tenant.microdao_id, tenant.agent_id)
        at, kept = self._kept.get(key, (0.0, []))
        age = time.monotonic() - at if at else STALE_S
        if age < FRESH_S:
            return kept
        try:
            answer = await self._ask(
                PREFIX,
                deadline,
                method="GET",
                params=tenant.model_dump(),
                patience_s=min(self._patience_s, LIST_PATIENCE_S),
            )
            found = self._definitions(answer)
        except DaarionError:
            if age < STALE_S:
                return kept
            raise
        self._kept[key] = (time.monotonic(), found)
        return found

    async def call(self, request: ToolCallRequest, deadline: Deadline) -> ToolCallResult:
        """Returns the call's result, failures included."""
        result, _ = await retry(
            lambda: self._attempt(request, deadline),
            repeat=lambda answer: answer[1] and request.call_id is not None,
            within_s=deadline.at_most(self._patience_s),
        )
        return result

    async def _attempt(
        self, request: ToolCallRequest, deadline: Deadline
    ) -> tuple[ToolCallResult, bool]:
        """Calls once; returns the result and whether a retry may help."""
        try:
            answer = await self._request(
                "POST", f"{PREFIX}/call", deadline, body=request.model_dump(exclude_none=True)
            )
        except DaarionError as error:
            kind: ErrorKind = "timeout" if error.status == 504 else "unavailable"
            failed = ToolCallResult(
                ok=False,
                error=error.message,
                error_kind=kind,
                retryable=error.retryable,
                call_id=request.call_id,
            )
            return failed, error.retryable and error.status != 504
        if isinstance(answer.body, dict) and isinstance(answer.body.get("ok"), bool):
            try:
                result = ToolCallResult.model_validate(answer.body)
            except ValidationError:
                return self._unreadable(request), False
            executed = answer.status == 200
            return result, not executed and bool(result.retryable) and result.error_kind in {
                "unavailable",
                "conflict",
            }
        if answer.ok:
            return self._unreadable(request), False
        refusal = self._refusal(answer)
        kind = "denied" if answer.status in {401, 403} else "unavailable"
        failed = ToolCallResult(
            ok=False,
            error=refusal.message,
            error_kind=kind,
            retryable=refusal.retryable,
            call_id=request.call_id,
        )
        return failed, refusal.retryable

    def _definitions(self, answer: JsonAnswer) -> list[ToolDefinition]:
        """Returns the tools of a listing without those that this version cannot read."""
        found = []
        for row in self._read(answer, _Listed, "tools").tools:
            known = {name: row[name] for name in ToolDefinition.model_fields if name in row}
            with contextlib.suppress(ValidationError):
                found.append(ToolDefinition.model_validate(known))
        return found

    def _unreadable(self, request: ToolCallRequest) -> ToolCallResult:
        error = f"{self.service} did not answer with a result"
        return ToolCallResult(
            ok=False, error=error, error_kind="internal", retryable=False, call_id=request.call_id
        )
