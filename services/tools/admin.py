"""What administrators do: register and disable tools, approve waiting calls, read the audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import Field

from contracts.access.audit import AuditRecord, Note
from contracts.access.principals import acting
from contracts.errors import Conflict, NotFound
from contracts.events import EventLog
from contracts.identity import as_uuid
from contracts.shapes import Strict
from contracts.tools.api import ToolDefinition
from contracts.tools.ledger import CallFilter, CallPage, ToolLedger
from contracts.tools.registry import ToolStore
from services.tools.catalog import native_form
from services.tools.outcomes import PageRequest, ResultPage, page
from services.tools.registry import Registry, check_definition
from services.tools.values import canonical

Resolve = Callable[[ToolDefinition], ToolDefinition]
"""Resolves the target's bases and checks target and secrets. Raises InvalidRequest."""


class ApprovalDecision(Strict):
    """Body of `POST /approvals/{call_id}`."""

    microdao_id: str = Field(min_length=1, max_length=256)
    granted: bool


@dataclass(frozen=True)
class ToolAdmin:
    """Writes the registry."""

    store: ToolStore
    registry: Registry
    resolve: Resolve
    events: EventLog

    async def put(self, definition: ToolDefinition) -> tuple[dict[str, Any], bool]:
        """Adds the tool or its next version; returns it and whether it is new to the registry.

        Raises:
            InvalidRequest: schemas, target or secrets that cannot be served.
            DatabaseUnavailable: probably nothing was written.
        """
        resolved = self.resolve(definition)
        check_definition(resolved)
        written = await self.store.put(resolved, "admin")
        self.events.emit(
            "tools.registered",
            tool_id=resolved.id,
            version=written.version,
            digest=_digest(resolved),
        )
        await self.registry.refresh()
        return native_form(written), written.version == 1

    async def disable(self, tool_id: str) -> dict[str, Any]:
        """Disables the tool for every way in. Raises NotFound."""
        written = await self.store.disable(tool_id, "admin")
        if written is None:
            raise NotFound(f"there is no tool `{tool_id[:64]}`")
        self.events.emit("tools.disabled", tool_id=tool_id, version=written.version)
        await self.registry.refresh()
        return {"id": tool_id, "version": written.version, "enabled": written.enabled}


@dataclass(frozen=True)
class Audit:
    """Reads the ledger, one microDAO at a time, and decides about waiting calls."""

    ledger: ToolLedger
    events: EventLog
    note: Note | None = None

    async def calls(self, wanted: CallFilter) -> CallPage:
        """Returns a page of calls, newest first."""
        return await self.ledger.list_calls(wanted)

    async def waiting(self, wanted: CallFilter) -> CallPage:
        """Returns calls that wait for approval, with the arguments and context to be approved."""
        return await self.ledger.list_calls(
            wanted.model_copy(update={"state": "awaiting_approval"}), show_waiting_args=True
        )

    async def decide(self, call_id: str, decision: ApprovalDecision) -> None:
        """Grants or rejects a waiting call. Raises Conflict.

        A granted call runs when its caller repeats it in time.
        """
        if not await self.ledger.decide_approval(
            decision.microdao_id, call_id, granted=decision.granted
        ):
            raise Conflict("no call of this id waits for a decision in this microDAO")
        self.events.emit(
            "tools.approval",
            call_id=call_id,
            microdao_id=decision.microdao_id,
            granted=decision.granted,
        )
        if self.note is not None:
            self.note(
                AuditRecord(
                    principal=acting().name,
                    action="grant" if decision.granted else "reject",
                    object=f"tools/approvals/{call_id}",
                    outcome="success",
                    microdao_id=decision.microdao_id,
                )
            )

    async def result(self, result_id: str, wanted: PageRequest) -> ResultPage:
        """Returns a page of a whole result. Raises NotFound if it is unknown or expired."""
        found = as_uuid(result_id)
        stored = await self.ledger.read_result(wanted.microdao_id, found) if found else None
        if stored is None:
            raise NotFound("there is no such result in this microDAO, or it is no longer kept")
        return page(stored, wanted)


def _digest(definition: ToolDefinition) -> str:
    return sha256(canonical(definition.model_dump(mode="json"))).hexdigest()[:16]
