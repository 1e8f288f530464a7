"""An admitted call: its record in the ledger before it runs, and its execution."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.deadline import Deadline
from contracts.tools.api import Decision, Execution, ToolCallRequest
from contracts.tools.ledger import CallIntent, Via
from contracts.values import storable_text
from services.tools.registry import Tool
from services.tools.values import canonical, digest


@dataclass(frozen=True)
class AdmittedCall:
    """A call that policy let through. `named`: the caller chose its id, so it may be recorded."""

    tool: Tool
    request: ToolCallRequest
    intent: CallIntent
    deadline: Deadline
    named: bool

    @property
    def needs_approval(self) -> bool:
        """Whether an administrator must agree before it runs."""
        return self.intent.approval_digest is not None

    @property
    def claimed(self) -> bool:
        """Whether the ledger is written before it runs; a mere `read` is recorded after."""
        return self.needs_approval or self.intent.effect != "read"


def intent_of(
    tool: Tool | None,
    request: ToolCallRequest,
    decision: Decision,
    *,
    needs_approval: bool,
    via: Via,
    request_id: str,
) -> CallIntent:
    """Returns the record of a call before it runs, or is refused.

    Raises:
        TypeError: arguments or context cannot be written as JSON.
    """
    definition = None if tool is None else tool.definition
    tool_id = storable_text(request.tool_id) if definition is None else definition.id
    keep_args = definition is not None and definition.record_args
    version = None if tool is None else tool.registered.version
    context = request.context or {}
    channel_id = context.get("channel_id")
    assert request.call_id is not None
    return CallIntent(
        call_id=request.call_id,
        microdao_id=request.microdao_id,
        agent_id=request.agent_id,
        tool_id=tool_id,
        tool_name=tool_id if definition is None else definition.name,
        tool_version=version,
        effect=None if definition is None else definition.effect,
        via=via,
        request_id=request_id,
        fingerprint=digest(tool_id, request.agent_id, request.args),
        rule=decision.rule,
        args=canonical(request.args).decode() if keep_args or needs_approval else None,
        keep_args=keep_args,
        context=canonical(context).decode() if needs_approval else None,
        approval_digest=digest(tool_id, version, request.agent_id, request.args, context)
        if needs_approval
        else None,
        channel_id=storable_text(channel_id) if isinstance(channel_id, str) else None,
    )


def deadline_of(tool: Tool, request: ToolCallRequest) -> Deadline:
    """Returns the call's deadline: the tool's timeout, or the caller's shorter one."""
    timeout_s = tool.definition.timeout_s
    return Deadline.after(min(timeout_s, request.timeout_s or timeout_s))


def execution_of(
    tool: Tool, request: ToolCallRequest, deadline: Deadline, attempt: int = 1
) -> Execution:
    """Returns the executor's view of a call. The caller's identity overwrites the context's."""
    assert isinstance(request.args, dict)
    assert request.call_id is not None
    identity = {
        "agent_id": request.agent_id,
        "microdao_id": request.microdao_id,
        "call_id": request.call_id,
    }
    return Execution(
        tool=tool.definition,
        args=request.args,
        context={**(request.context or {}), **identity},
        call_id=request.call_id,
        deadline=deadline,
        idempotency_key=digest(request.microdao_id, request.call_id).hex()[:40],
        attempt=attempt,
    )
