"""The use case of a tool call: asked, allowed, executed, recorded, answered.

HTTP, NATS, MCP and handles all come here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

from common import tracing
from contracts.access.policy import PolicyService
from contracts.deadline import Deadline
from contracts.errors import DeadlineExceeded, Forbidden, Unavailable
from contracts.events import EventLog
from contracts.identity import Tenant
from contracts.tools.api import Decision, Execution, Outcome, ToolCallRequest, ToolCallResult
from contracts.tools.ledger import CallIntent, RecordedCall, Settlement, ToolLedger, Via
from contracts.values import storable_text
from services.tools.call_span import show_decision, span_attributes
from services.tools.execution import ToolRunner
from services.tools.outcomes import (
    INDETERMINATE,
    CallAnswer,
    answered,
    check_outcome,
    recall,
    refused,
)
from services.tools.policy import UNWRITABLE, Policy
from services.tools.recorder import ToolRecorder
from services.tools.registry import Registry, Tool
from services.tools.resume import REFUSALS, STILL_RUNNING, Resume, resume
from services.tools.values import canonical, digest

FIRST_POLL_S = 0.05
LONGEST_POLL_S = 0.5
_CANCELLED = Outcome(
    False,
    error_kind="cancelled",
    error="the caller left before the tool had ended",
    effect_possible=True,
    retryable=True,
)


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
        trace_id=tracing.current_trace_id(),
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


@dataclass(frozen=True)
class DryRun:
    """The decision about a call, and what the executor would be given (None when refused)."""

    decision: Decision
    execution: Execution | None = None
    tool_version: int | None = None
    requires_approval: bool = False


@dataclass(frozen=True)
class ToolCalls:
    """Runs tool calls over the registry, the ledger and the executors.

    `outside` is asked about calls that `policy` allows.
    """

    registry: Registry
    policy: Policy
    ledger: ToolLedger
    recorder: ToolRecorder
    runner: ToolRunner
    events: EventLog
    outside: PolicyService | None = None

    async def call(self, request: ToolCallRequest, *, via: Via, request_id: str) -> CallAnswer:
        """Runs one call. Never raises for a refusal or a failure; cancelling it stops the tool.

        The same `call_id` with the same tool, agent and arguments is one call: it is answered with
        the recorded result.
        """
        named = request.call_id is not None
        if not named:
            request = request.model_copy(update={"call_id": f"call-{uuid4().hex}"})
        with tracing.span("execute_tool", attributes=span_attributes(request)) as span:
            try:
                answer = await self._decided(request, named=named, via=via, request_id=request_id)
            except Exception as error:  # noqa: BLE001  # every call gets an answer
                answer = CallAnswer(self._unavailable(error, request_id))
            if answer.result.error_kind is not None:
                tracing.fail(span, answer.result.error_kind)
        ids = {"request_id": request_id, "call_id": request.call_id}
        return replace(answer, result=answer.result.model_copy(update=ids))

    async def dry_run(self, request: ToolCallRequest) -> DryRun:
        """Returns the decision and the execution; runs and records nothing. Raises Unavailable."""
        tool = await self.registry.find(request.tool_id)
        decision = await self._decision(tool, request)
        if tool is None or not decision.allowed:
            return DryRun(decision)
        named = request.model_copy(update={"call_id": request.call_id or "call-dry-run"})
        execution = execution_of(tool, named, deadline_of(tool, named))
        needs_approval = self.policy.needs_approval(tool.definition)
        return DryRun(decision, execution, tool.registered.version, needs_approval)

    async def _decision(self, tool: Tool | None, request: ToolCallRequest) -> Decision:
        """Decides by our own rules, then by those of the outside service."""
        decision = self.policy.decide(tool, request)
        if tool is None or not decision.allowed or self.outside is None:
            return decision
        try:
            await self.outside.check(
                "exec_tool",
                ("tool", tool.definition.id),
                Tenant(microdao_id=request.microdao_id, agent_id=request.agent_id),
            )
        except Forbidden as error:
            return Decision(
                allowed=False,
                rule="policy_service",
                error_kind="denied",
                reason=error.message,
                retryable=error.retryable,
            )
        return decision

    async def _decided(
        self, request: ToolCallRequest, *, named: bool, via: Via, request_id: str
    ) -> CallAnswer:
        tool = await self.registry.find(request.tool_id)
        decision = await self._decision(tool, request)
        needs_approval = tool is not None and self.policy.needs_approval(tool.definition)

        def intent() -> CallIntent:
            return intent_of(
                tool, request, decision,
                needs_approval=needs_approval, via=via, request_id=request_id,
            )  # fmt: skip

        try:
            recorded = intent()
        except TypeError:
            decision = UNWRITABLE if decision.allowed else decision
            request = request.model_copy(update={"args": None, "context": None})
            recorded = intent()
        show_decision(tool, decision)
        if tool is None or not decision.allowed:
            return await self._refuse(recorded, decision)
        deadline = deadline_of(tool, request)
        return await self._admitted(AdmittedCall(tool, request, recorded, deadline, named))

    async def _admitted(self, call: AdmittedCall) -> CallAnswer:
        """Continues from what is recorded under the call's id, until there is an answer."""
        recorded = await self._begin(call)
        poll_s = FIRST_POLL_S
        while recorded is not None:
            step = resume(recorded, call.intent.fingerprint, call.intent.approval_digest)
            if step is Resume.RUN:
                if not call.claimed and recorded.state == "settled":
                    return await self._run(call, call.intent, recorded.attempt + 1)
                attempt = recorded.attempt + (recorded.state != "awaiting_approval")
                intent = replace(call.intent, id=recorded.id)
                if await self.recorder.claim(
                    self.ledger.take_over(recorded), intent, attempt, bool
                ):
                    return await self._run(call, intent, attempt)
            elif step is Resume.LOST:
                await self.ledger.settle(
                    recorded.microdao_id, recorded.id, recorded.attempt, INDETERMINATE
                )
            elif step is not Resume.WAIT:
                return await self._standing(call, recorded, step)
            if call.deadline.remaining() <= poll_s:
                return await self._refuse(call.intent, STILL_RUNNING)
            await asyncio.sleep(poll_s if step is Resume.WAIT else 0)
            poll_s = min(poll_s * 1.5, LONGEST_POLL_S)
            recorded = await self._holder(call.intent)
        return await self._run(call, call.intent, 1)

    async def _begin(self, call: AdmittedCall) -> RecordedCall | None:
        """Takes the call id; returns the call that holds it, or None when it is ours."""
        if call.needs_approval:
            return await self.ledger.await_approval(call.intent) or await self._holder(call.intent)
        if call.claimed:
            claim = self.ledger.claim(call.intent)
            return await self.recorder.claim(claim, call.intent, 1, lambda holder: holder is None)
        return await self._holder(call.intent) if call.named else None

    async def _holder(self, intent: CallIntent) -> RecordedCall | None:
        return await self.ledger.find(intent.microdao_id, intent.call_id)

    async def _standing(
        self, call: AdmittedCall, recorded: RecordedCall, step: Resume
    ) -> CallAnswer:
        """Answers where nothing runs: a replay or a refusal."""
        if step is not Resume.REPLAY:
            return await self._refuse(call.intent, REFUSALS[step])
        return answered(
            call.tool,
            await asyncio.to_thread(recall, call.tool, recorded),
            recorded.id,
            version=recorded.tool_version,
            kept_until=recorded.result_kept_until,
            replayed=True,
        )

    async def _run(self, call: AdmittedCall, intent: CallIntent, attempt: int) -> CallAnswer:
        """Executes and records; the record is written even if the caller leaves meanwhile."""
        execution = execution_of(call.tool, call.request, call.deadline, attempt)
        claimed = attempt if call.claimed else None
        with self.recorder.lease(intent.id):
            try:
                outcome = await self.runner.run(execution)
            except asyncio.CancelledError:
                cancelled = await check_outcome(call.tool, _CANCELLED)
                self.recorder.end_later(intent, cancelled, claimed)
                raise
            settlement = await check_outcome(call.tool, outcome)
            record = await self.recorder.end(intent, settlement, claimed)
        return await self._answer(call, intent, settlement, record)

    async def _answer(
        self, call: AdmittedCall, intent: CallIntent, settlement: Settlement, record: UUID | None
    ) -> CallAnswer:
        """Answers what the ledger holds: the result of another run, if that was recorded first."""
        if record is not None:
            return answered(call.tool, settlement, record, version=intent.tool_version)
        recorded = await self._holder(intent)
        if recorded is None or recorded.state != "settled":
            return await self._refuse(intent, STILL_RUNNING)
        step = resume(recorded, intent.fingerprint)
        return await self._standing(call, recorded, Resume.REPLAY if step is Resume.RUN else step)

    async def _refuse(self, intent: CallIntent, decision: Decision) -> CallAnswer:
        await self.recorder.refuse(intent, decision)
        return refused(decision, intent.tool_id, intent.tool_version)

    def _unavailable(self, error: Exception, request_id: str) -> ToolCallResult:
        if isinstance(error, Unavailable | DeadlineExceeded):
            return ToolCallResult(
                ok=False, error=error.message, error_kind="unavailable", retryable=True
            )
        self.events.emit(
            "tools.defect", request_id=request_id, error=type(error).__name__, exc_info=error
        )
        text = "an internal error; its details are in the log under this request id"
        return ToolCallResult(ok=False, error=text, error_kind="internal", retryable=False)
