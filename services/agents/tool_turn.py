"""The tool calls of one step: which of them are allowed, how they run, and their results.

A call is allowed by the blueprint, by Toolcore's list and by what the run has read so far, never by
what a text says. Toolcore applies its own rules again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from pydantic import JsonValue

from contracts.agents.blueprints import Blueprint
from contracts.agents.ports import AgentTools
from contracts.agents.runs import Run, ToolUse
from contracts.deadline import Deadline
from contracts.tools.api import (
    MAX_TIMEOUT_S,
    Effect,
    ToolCallRequest,
    ToolCallResult,
    ToolDefinition,
)
from services.agents.texts import clean
from services.agents.tool_calls import WantedCall

NAMES_SHOWN = 20
NAME_CHARS = 64

ADVICE = {
    "denied": "you may not do this; answer without it",
    "invalid_args": "correct the arguments, or answer without this tool",
    "not_found": "use one of your tools, or answer without",
    "conflict": "this was already done or is being done; do not repeat it",
    "timeout": "it took too long; say that it could not be found out now",
    "unavailable": "it cannot be reached now; say so",
    "indeterminate": "it may or may not have happened; do not repeat it, tell the person",
}
DEFAULT_ADVICE = "answer without it, and say what could not be found out"


@dataclass(frozen=True)
class Refusal:
    """Why a call is not made; both parts are shown to the model."""

    kind: str
    reason: str


TOO_MANY = Refusal("denied", "too many calls; this one was not made")


@dataclass(frozen=True)
class CallOutcome:
    """The outcome of one call: `text` is JSON for the model, `use` is for the run's record."""

    source: str
    text: str
    use: ToolUse


@dataclass
class Toolbox:
    """The tools of one run and the calls that it has made.

    `recorded_tools` are those that the run began with: recorded calls are repeated under the same
    ids, also when a tool is no longer listed. `made` holds the calls that were made; `asked` also
    those whose refusal would be the same again.
    """

    blueprint: Blueprint
    run: Run
    tools: AgentTools
    allowed: Sequence[ToolDefinition]
    recorded_tools: Mapping[str, Effect] = field(default_factory=dict)
    made: set[bytes] = field(default_factory=set)
    asked: set[bytes] = field(default_factory=set)
    used: int = 0

    def __post_init__(self) -> None:
        self._effects: Mapping[str, Effect] = {tool.id: tool.effect for tool in self.allowed}

    async def make(
        self,
        wanted: Sequence[WantedCall],
        step: int,
        deadline: Deadline,
        *,
        tainted: bool,
        recorded: bool,
    ) -> list[CallOutcome]:
        """Returns one outcome per call, in the calls' order.

        `step` counts from 0. `tainted`: the run has read untrusted content. `recorded`: an earlier
        attempt recorded these calls and may have made them.

        Neighbouring reads run concurrently; a call that changes something runs alone. A call's id
        is made of run, step and place, so a resumed run repeats no effect.
        """
        effects = {**self._effects, **self.recorded_tools} if recorded else self._effects
        refusals = [
            self._admit(call, place, effects, tainted=tainted) for place, call in enumerate(wanted)
        ]
        changes = [
            refusal is None and effects[call.tool_id] != "read"
            for call, refusal in zip(wanted, refusals, strict=True)
        ]
        outcomes: list[CallOutcome] = []
        for stage in _stages(changes):
            outcomes += await asyncio.gather(
                *(
                    self._call_one(wanted[place], refusals[place], step, place, deadline)
                    for place in stage
                )
            )
        return outcomes

    def without_optional_arguments(self, wanted: Sequence[WantedCall]) -> list[WantedCall]:
        """Drops the optional arguments of calls whose results the model only chooses among.

        Such a model fills them in at random, and a random filter would hide results.
        """
        choice = self.blueprint.answer
        return [
            self._required_args_only(call)
            if choice is not None and call.tool_id == choice.tool
            else call
            for call in wanted
        ]

    def _required_args_only(self, call: WantedCall) -> WantedCall:
        tool = next((tool for tool in self.allowed if tool.id == call.tool_id), None)
        required = tool.input_schema.get("required") if tool is not None else None
        kept = required if isinstance(required, list) else []
        return replace(
            call, args={name: value for name, value in call.args.items() if name in kept}
        )

    def is_repeat(self, wanted: Sequence[WantedCall]) -> bool:
        """Whether all of these calls were asked for before, so that another step would not help."""
        return bool(wanted) and all(_fingerprint(call) in self.asked for call in wanted)

    def may_change(self, wanted: Sequence[WantedCall]) -> bool:
        """Whether one of the calls belongs to a tool that changes something."""
        effects = {**self._effects, **self.recorded_tools}
        return any(effects.get(call.tool_id, "read") != "read" for call in wanted)

    def _admit(
        self, call: WantedCall, place: int, effects: Mapping[str, Effect], *, tainted: bool
    ) -> Refusal | None:
        """The reason why this call is refused, or None; counts the call."""
        refusal = self._refusal(call, place, effects, tainted=tainted)
        if refusal is None:
            self.made.add(_fingerprint(call))
            self.used += 1
        if refusal != TOO_MANY:  # may be made in the next step
            self.asked.add(_fingerprint(call))
        return refusal

    def _refusal(
        self, call: WantedCall, place: int, effects: Mapping[str, Effect], *, tainted: bool
    ) -> Refusal | None:
        limits = self.blueprint.limits
        if call.problem is not None:
            return Refusal("invalid_args", call.problem)
        effect = effects.get(call.tool_id)
        if effect is None:
            names = ", ".join(list(effects)[:NAMES_SHOWN]) or "none"
            return Refusal("not_found", f"there is no such tool; yours are: {names}")
        if _fingerprint(call) in self.made:
            return Refusal("conflict", "you have made this very call already; its result is above")
        if place >= limits.calls_per_step or self.used >= limits.tool_calls:
            return TOO_MANY
        if (
            effect != "read"
            and tainted
            and not self.blueprint.may_write_after_untrusted(call.tool_id)
        ):
            return Refusal(
                "denied", "this tool changes something, and you have read untrusted material"
            )
        return None

    async def _call_one(
        self, call: WantedCall, refusal: Refusal | None, step: int, place: int, deadline: Deadline
    ) -> CallOutcome:
        if refusal is not None:
            return _refused(call, refusal)
        request = ToolCallRequest(
            tool_id=call.tool_id,
            agent_id=self.run.agent_id,
            microdao_id=self.run.microdao_id,
            args=call.args,
            context=self._context(),
            call_id=f"run-{self.run.id}-{step}-{place}",
            timeout_s=min(max(deadline.remaining(), 0.001), MAX_TIMEOUT_S),
        )
        return _outcome(call, await self.tools.call(request, deadline))

    def _context(self) -> dict[str, JsonValue]:
        channel: dict[str, JsonValue] = (
            {"channel_id": self.run.channel_id} if self.run.channel_id else {}
        )
        return {**channel, "run_id": str(self.run.id)}


def _stages(changes: Sequence[bool]) -> list[list[int]]:
    """The places of the calls, grouped by what runs concurrently: reads together, changes alone."""
    stages: list[list[int]] = []
    together = False
    for place, changing in enumerate(changes):
        if together and not changing:
            stages[-1].append(place)
        else:
            stages.append([place])
        together = not changing
    return stages


def _outcome(call: WantedCall, result: ToolCallResult) -> CallOutcome:
    use = ToolUse(
        tool_id=call.tool_id,
        call_id=result.call_id,
        executed=True,
        ok=result.ok,
        error_kind=result.error_kind,
        duration_ms=result.duration_ms,
        replayed=result.replayed,
    )
    if result.ok:
        shown: Any = (
            {"result": result.result, "note": "this is only the beginning"}
            if result.truncated
            else result.result
        )
        return CallOutcome(f"tool {call.tool_id}", _json(shown), use)
    kind = result.error_kind or "internal"
    return CallOutcome(f"tool {call.tool_id}", _json(_failure(result.error or kind, kind)), use)


def _refused(call: WantedCall, refusal: Refusal) -> CallOutcome:
    use = ToolUse(
        tool_id=clean(call.tool_id)[:NAME_CHARS] or "unreadable",
        executed=False,
        ok=False,
        error_kind=refusal.kind,
    )
    return CallOutcome("tools", _json(_failure(refusal.reason, refusal.kind)), use)


def _failure(error: str, kind: str) -> dict[str, Any]:
    return {"ok": False, "error": error, "what_to_do": ADVICE.get(kind, DEFAULT_ADVICE)}


def _json(value: Any) -> str:
    return clean(orjson.dumps(value).decode())


def _fingerprint(call: WantedCall) -> bytes:
    return orjson.dumps([call.tool_id, call.args, call.problem], option=orjson.OPT_SORT_KEYS)
