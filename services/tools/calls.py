"""The use case of a tool call: policy, one record per call id, execution, one answer. HTTP, NATS and MCP all come here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

from contracts.deadline import Deadline
from contracts.errors import DeadlineExceeded, Unavailable
from contracts.events import EventLog
from contracts.tools.api import (
    Decision,
    Execution,
    Outcome,
    ResultReference,
    ToolCallRequest,
    ToolCallResult,
    ToolExecutor,
)
from contracts.tools.ledger import CallIntent, RecordedCall, ToolLedger, Via
from contracts.values import storable_text
from services.tools.outcomes import (
    INDETERMINATE,
    Checked,
    call_result,
    check_outcome,
    failed,
    kept_result,
    recall,
    refusal,
    structured_text,
    timed_out,
)
from services.tools.policy import Policy
from services.tools.recorder import Recorder
from services.tools.registry import Registry, Tool
from services.tools.resume import Resume, resume
from services.tools.slots import ConcurrencySlots
from services.tools.values import canonical, digest

EXECUTOR_MARGIN_S = 1.0
FIRST_LOOK_S = 0.05
LONGEST_LOOK_S = 0.5


@dataclass(frozen=True)
class Reply:
    """The answer, and whether the call ran (now or before) rather than being refused. `reference` leads to a kept result.

    `structured` is the result's JSON text where no cut of it matches an output schema that MCP
    lists, so that `result` is empty.
    """

    result: ToolCallResult
    executed: bool
    reference: ResultReference | None = None
    structured: str | None = None


@dataclass(frozen=True)
class DryRun:
    """What would have happened: the decision, and the request as the executor would get it (None when refused)."""

    decision: Decision
    tool: Tool | None
    execution: Execution | None
    requires_approval: bool


@dataclass(frozen=True)
class _Call:
    """One admitted call on its way. `named` says that the caller chose the id, so it may be recorded already."""

    tool: Tool
    request: ToolCallRequest
    intent: CallIntent
    deadline: Deadline
    named: bool
    needs_approval: bool

    @property
    def claimed(self) -> bool:
        """Whether the ledger is written before it runs; a mere `read` is recorded after."""
        return self.needs_approval or self.tool.definition.effect != "read"


class ToolCalls:
    """Runs tool calls over the registry, the ledger and the executors."""

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        ledger: ToolLedger,
        recorder: Recorder,
        *,
        executors: Mapping[str, ToolExecutor],
        events: EventLog,
        slots: ConcurrencySlots,
    ) -> None:
        self._registry = registry
        self.policy = policy
        self._ledger = ledger
        self._recorder = recorder
        self._executors = executors
        self._events = events
        self._slots = slots

    async def call(self, request: ToolCallRequest, *, via: Via, request_id: str) -> Reply:
        """Runs one call. Never raises for a refusal or a failure; cancelling it stops the tool.

        The same `call_id` with the same tool, agent and arguments is one call: its recorded result is given again.
        """
        call_id = request.call_id or f"call-{uuid4().hex}"
        try:
            reply = await self._decided(request, call_id, via, request_id)
        except Exception as error:  # noqa: BLE001  # whatever broke, a call has an answer in its own form
            reply = Reply(self._unavailable(error, request_id), executed=False)
        named = {"request_id": request_id, "call_id": call_id}
        return replace(reply, result=reply.result.model_copy(update=named))

    async def dry_run(self, request: ToolCallRequest) -> DryRun:
        """Returns the decision and the resolved request without a call and without a record. Raises Unavailable."""
        tool = await self._registry.find(request.tool_id)
        decision = self.policy.decide(tool, request)
        if tool is None or not decision.allowed:
            return DryRun(decision, tool, None, requires_approval=False)
        call_id = request.call_id or "call-dry-run"
        execution = _execution(tool, request, call_id, Deadline.after(_timeout_s(tool, request)), 1)
        return DryRun(
            decision, tool, execution, requires_approval=self.policy.needs_approval(tool.definition)
        )

    async def _decided(
        self, request: ToolCallRequest, call_id: str, via: Via, request_id: str
    ) -> Reply:
        tool = await self._registry.find(request.tool_id)
        decision = self.policy.decide(tool, request)
        try:
            intent = self._intent(
                tool, request, call_id, via=via, request_id=request_id, rule=decision.rule
            )
        except TypeError:
            decision = _UNWRITABLE if decision.allowed else decision
            bare = request.model_copy(update={"args": None, "context": None})
            intent = self._intent(
                tool, bare, call_id, via=via, request_id=request_id, rule=decision.rule
            )
        if tool is None or not decision.allowed:
            return await self._refuse(intent, decision)
        call = _Call(
            tool=tool,
            request=request,
            intent=intent,
            deadline=Deadline.after(_timeout_s(tool, request)),
            named=request.call_id is not None,
            needs_approval=self.policy.needs_approval(tool.definition),
        )
        return await self._admitted(call)

    async def _admitted(self, call: _Call) -> Reply:
        """Goes on from whatever is recorded under the call's id, until there is an answer."""
        recorded = await self._begin(call)
        look_s = FIRST_LOOK_S
        while recorded is not None:
            step = resume(recorded, call.intent.fingerprint, call.intent.approval_digest)
            if step is Resume.RUN:
                if not call.claimed and recorded.state == "settled":
                    return await self._run(call, call.intent.id, recorded.attempt + 1)
                attempt = recorded.attempt + (recorded.state != "awaiting_approval")
                intent = _renamed(call.intent, recorded.id)
                if await self._recorder.claim(
                    self._ledger.take_over(recorded), intent, attempt, bool
                ):
                    return await self._run(call, recorded.id, attempt)
            elif step is Resume.LOST:
                await self._ledger.settle(
                    recorded.microdao_id, recorded.id, recorded.attempt, INDETERMINATE
                )
            elif step is not Resume.WAIT:
                return await self._standing(call, recorded, step)
            if call.deadline.remaining() <= look_s:
                return await self._refuse(call.intent, _STILL_RUNNING)
            await asyncio.sleep(look_s if step is Resume.WAIT else 0)
            look_s = min(look_s * 1.5, LONGEST_LOOK_S)
            recorded = await self._ledger.find(call.intent.microdao_id, call.intent.call_id)
        return await self._run(call, call.intent.id, 1)

    async def _begin(self, call: _Call) -> RecordedCall | None:
        """Takes the call id; returns who holds it already, or None when it is ours."""
        if call.needs_approval:
            holder = await self._ledger.await_approval(call.intent)
            return holder or await self._ledger.find(call.intent.microdao_id, call.intent.call_id)
        if call.claimed:
            return await self._recorder.claim(
                self._ledger.claim(call.intent), call.intent, 1, lambda holder: holder is None
            )
        return (
            await self._ledger.find(call.intent.microdao_id, call.intent.call_id)
            if call.named
            else None
        )

    async def _standing(self, call: _Call, recorded: RecordedCall, step: Resume) -> Reply:
        """The answer where nothing runs: a replay or a refusal."""
        if step is not Resume.REPLAY:
            return await self._refuse(call.intent, _REFUSALS[step])
        checked = await asyncio.to_thread(recall, call.tool, recorded)
        kept_until = (
            None if recorded.result_kept_until is None else recorded.result_kept_until.isoformat()
        )
        reference = kept_result(checked, str(recorded.id), kept_until)
        result = _identified(
            call_result(checked, reference), call, version=recorded.tool_version, replayed=True
        )
        return Reply(
            result,
            executed=True,
            reference=reference,
            structured=structured_text(call.tool, checked),
        )

    async def _run(self, call: _Call, record_id: UUID, attempt: int) -> Reply:
        """Executes and records; the record is written even when the caller leaves meanwhile."""
        execution = _execution(call.tool, call.request, call.intent.call_id, call.deadline, attempt)
        intent = call.intent if record_id == call.intent.id else _renamed(call.intent, record_id)
        with self._recorder.lease(intent.id):
            try:
                outcome = await self._execute(call.tool, execution)
            except asyncio.CancelledError:
                cancelled = (await check_outcome(call.tool, _CANCELLED)).settlement
                if call.claimed:
                    self._recorder.settle_later(intent, attempt, cancelled)
                else:
                    self._recorder.record_later(intent, cancelled)
                raise
            checked = await check_outcome(call.tool, outcome)
            if not call.claimed:
                recorded_as = await self._recorder.record(intent, checked.settlement)
            else:
                recorded_as = (
                    intent.id
                    if await self._recorder.settle(intent, attempt, checked.settlement)
                    else None
                )
        return await self._answer(call, intent, checked, recorded_as)

    async def _answer(
        self, call: _Call, intent: CallIntent, checked: Checked, recorded_as: UUID | None
    ) -> Reply:
        """What the ledger holds is the answer: where another run was recorded first, its result."""
        if recorded_as is None:
            recorded = await self._ledger.find(intent.microdao_id, intent.call_id)
            if recorded is not None and recorded.state == "settled":
                step = resume(recorded, intent.fingerprint)
                return await self._standing(
                    call, recorded, Resume.REPLAY if step is Resume.RUN else step
                )
            return await self._refuse(intent, _STILL_RUNNING)
        reference = kept_result(checked, str(recorded_as))
        result = _identified(
            call_result(checked, reference), call, version=call.intent.tool_version
        )
        return Reply(
            result,
            executed=True,
            reference=reference,
            structured=structured_text(call.tool, checked),
        )

    async def _execute(self, tool: Tool, execution: Execution) -> Outcome:
        executor = self._executors.get(tool.definition.executor)
        if executor is None:
            return failed(
                "unavailable",
                f"no executor `{tool.definition.executor}` runs here",
                effect_possible=False,
                retryable=True,
            )
        try:
            async with (
                self._slots.slot(tool.definition, execution.deadline),
                asyncio.timeout(_patience(execution)),
            ):
                return await executor.execute(execution)
        except TimeoutError:
            return timed_out(execution)
        except Unavailable as error:
            return failed("unavailable", error.message, effect_possible=False, retryable=True)
        except Exception as error:  # noqa: BLE001  # an executor's defect must end in a record like any other failure
            self._events.emit(
                "tools.executor_defect",
                tool_id=tool.definition.id,
                error=type(error).__name__,
                exc_info=error,
            )
            return failed(
                "internal",
                "the executor failed; its log has the details under this request id",
                effect_possible=True,
            )

    def _intent(
        self,
        tool: Tool | None,
        request: ToolCallRequest,
        call_id: str,
        *,
        via: Via,
        request_id: str,
        rule: str,
    ) -> CallIntent:
        definition = None if tool is None else tool.definition
        tool_id = storable_text(request.tool_id) if definition is None else definition.id
        keep_args = definition is not None and definition.record_args
        needs_approval = definition is not None and self.policy.needs_approval(definition)
        version = None if tool is None else tool.registered.version
        context = request.context or {}
        channel_id = context.get("channel_id")
        return CallIntent(
            call_id=call_id,
            microdao_id=request.microdao_id,
            agent_id=request.agent_id,
            tool_id=tool_id,
            tool_name=tool_id if definition is None else definition.name,
            tool_version=version,
            effect=None if definition is None else definition.effect,
            via=via,
            request_id=request_id,
            fingerprint=digest(tool_id, request.agent_id, request.args),
            rule=rule,
            args=canonical(request.args).decode() if keep_args or needs_approval else None,
            keep_args=keep_args,
            context=canonical(context).decode() if needs_approval else None,
            approval_digest=digest(tool_id, version, request.agent_id, request.args, context)
            if needs_approval
            else None,
            channel_id=storable_text(channel_id) if isinstance(channel_id, str) else None,
        )

    async def _refuse(self, intent: CallIntent, decision: Decision) -> Reply:
        await self._recorder.refuse(intent, decision)
        self._events.emit(
            "tools.refused",
            request_id=intent.request_id,
            agent_id=intent.agent_id,
            microdao_id=intent.microdao_id,
            tool_id=intent.tool_id,
            rule=decision.rule,
            error_kind=decision.error_kind,
        )
        result = refusal(decision).model_copy(
            update={"tool_id": intent.tool_id, "tool_version": intent.tool_version}
        )
        return Reply(result, executed=False)

    def _unavailable(self, error: Exception, request_id: str) -> ToolCallResult:
        if isinstance(error, Unavailable | DeadlineExceeded):
            return ToolCallResult(
                ok=False, error=error.message, error_kind="unavailable", retryable=True
            )
        self._events.emit(
            "tools.defect", request_id=request_id, error=type(error).__name__, exc_info=error
        )
        text = "an internal error; its details are in the log under this request id"
        return ToolCallResult(ok=False, error=text, error_kind="internal", retryable=False)


_CANCELLED = failed(
    "cancelled", "the caller left before the tool had ended", effect_possible=True, retryable=True
)
_UNWRITABLE = Decision(
    allowed=False,
    rule="input_schema",
    error_kind="invalid_args",
    reason="args: expected JSON of UTF-8 texts and 64-bit numbers",
    path="$",
)
_STILL_RUNNING = Decision(
    allowed=False,
    rule="call_id",
    error_kind="conflict",
    reason="a call with this call_id is still running: ask again later with the same call_id",
    retryable=True,
)
_REFUSALS = {
    Resume.CONFLICT: Decision(
        allowed=False,
        rule="call_id",
        error_kind="conflict",
        reason="this call_id belongs to a call with another tool, agent or arguments: use a new one",
    ),
    Resume.FORGOTTEN: Decision(
        allowed=False,
        rule="call_id",
        error_kind="conflict",
        reason="a call with this call_id succeeded, and its result is no longer kept: use a new call_id to run it again",
    ),
    Resume.APPROVAL_PENDING: Decision(
        allowed=False,
        rule="approval",
        error_kind="denied",
        reason="this call waits for an administrator's approval: repeat it with the same call_id once it is granted",
        retryable=True,
    ),
    Resume.APPROVAL_LAPSED: Decision(
        allowed=False,
        rule="approval",
        error_kind="conflict",
        reason="the tool or the context has changed since this call was put up for approval, or its approval has ended: use a new call_id",
    ),
    Resume.APPROVAL_REJECTED: Decision(
        allowed=False,
        rule="approval",
        error_kind="denied",
        reason="an administrator rejected this call",
    ),
}


def _timeout_s(tool: Tool, request: ToolCallRequest) -> float:
    return min(tool.definition.timeout_s, request.timeout_s or tool.definition.timeout_s)


def _patience(execution: Execution) -> float:
    """Executors keep the deadline themselves; this is the defence against one that does not."""
    return execution.deadline.remaining() + EXECUTOR_MARGIN_S


def _execution(
    tool: Tool, request: ToolCallRequest, call_id: str, deadline: Deadline, attempt: int
) -> Execution:
    """The resolved request: Toolcore writes who calls over whatever the caller put there."""
    identity = {
        "agent_id": request.agent_id,
        "microdao_id": request.microdao_id,
        "call_id": call_id,
    }
    assert isinstance(request.args, dict)
    return Execution(
        tool=tool.definition,
        args=request.args,
        context={**(request.context or {}), **identity},
        call_id=call_id,
        deadline=deadline,
        idempotency_key=digest(request.microdao_id, call_id).hex()[:40],
        attempt=attempt,
    )


def _identified(
    result: ToolCallResult, call: _Call, *, version: int | None, replayed: bool | None = None
) -> ToolCallResult:
    return result.model_copy(
        update={"tool_id": call.tool.definition.id, "tool_version": version, "replayed": replayed}
    )


def _renamed(intent: CallIntent, record_id: UUID) -> CallIntent:
    """The same call under the record that holds its id already."""
    return CallIntent(**{**intent.__dict__, "id": record_id})
