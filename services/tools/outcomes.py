"""From what an executor reports to what is recorded and answered: results checked, bounded and previewed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import orjson

from contracts.tools.api import (
    Decision,
    ErrorKind,
    Execution,
    Outcome,
    ResultReference,
    ToolCallResult,
)
from contracts.tools.ledger import RecordedCall, Settlement
from services.tools.registry import Tool
from services.tools.results import preview, to_text
from services.tools.schemas import Budget

# Above this many bytes the checks leave the event loop for a thread.
MAX_INLINE_CHECK_BYTES = 32 * 1024
MAX_ERROR_CHARS = 2_000
MAX_RAW_CHARS = 2_000
RESULT_BUDGET_STEPS = 5_000_000
RESULT_BUDGET_CPU_S = 5.0

INDETERMINATE = Settlement(
    ok=False,
    error_kind="indeterminate",
    error="the call was cut off: whether its effect happened is not known, and it is not run again",
    effect_possible=True,
)


@dataclass(frozen=True)
class Checked:
    """A settlement and the result as it is shown: whole, or a preview when `truncated`."""

    settlement: Settlement
    shown: Any = None
    truncated: bool = False


async def check_outcome(tool: Tool, outcome: Outcome) -> Checked:
    """Returns the settlement of an execution: the result must be JSON, within its bound, and match the output schema."""
    base = _settlement(tool, outcome)
    if not outcome.ok:
        return Checked(base)
    try:
        text = to_text(outcome.result)
    except TypeError:
        return Checked(
            _unusable(
                base,
                "invalid_result",
                "the tool's result cannot be written as JSON (UTF-8 texts, 64-bit numbers)",
            )
        )
    if len(text) > MAX_INLINE_CHECK_BYTES:
        return await asyncio.to_thread(_check_text, tool, base, outcome.result, text)
    return _check_text(tool, base, outcome.result, text)


def _check_text(tool: Tool, base: Settlement, result: Any, text: str) -> Checked:
    if len(text.encode()) > tool.definition.max_result_bytes:
        return Checked(
            _unusable(
                base,
                "too_large",
                f"the tool's result is over its bound of {tool.definition.max_result_bytes} bytes",
            )
        )
    violation = (
        None
        if tool.output is None
        else tool.output.violation(result, Budget(RESULT_BUDGET_STEPS, RESULT_BUDGET_CPU_S))
    )
    if violation is not None:
        details = {
            "path": violation.path,
            "expected": violation.expected,
            "raw": text[:MAX_RAW_CHARS],
        }
        error = f"the tool's result does not match its output_schema: result{violation.path.removeprefix('$')}: expected {violation.expected}"
        return Checked(replace(_unusable(base, "invalid_result", error), details=details))
    items = len(result) if isinstance(result, list) else None
    settled = replace(base, result=text, result_items=items, shown=tool.definition.record_result)
    shown, truncated = _shown(tool, result, text)
    return Checked(settled, shown, truncated)


def recall(tool: Tool, recorded: RecordedCall) -> Checked:
    """Returns what is known about a call that was settled before."""
    assert recorded.settlement is not None
    text = recorded.settlement.result
    if not recorded.settlement.ok or text is None:
        return Checked(recorded.settlement)
    shown, truncated = _shown(tool, orjson.loads(text), text)
    return Checked(recorded.settlement, shown, truncated)


def refusal(decision: Decision) -> ToolCallResult:
    """Returns the answer to a call that policy did not let through."""
    details = {"rule": decision.rule, "path": decision.path, "expected": decision.expected}
    return ToolCallResult(
        ok=False,
        error=decision.reason,
        error_kind=decision.error_kind,
        retryable=decision.retryable,
        details={name: value for name, value in details.items() if value is not None},
    )


def kept_result(
    checked: Checked, record_id: str, expires_at: str | None = None
) -> ResultReference | None:
    """Returns where the whole result of a success can be read."""
    text = checked.settlement.result
    if text is None:
        return None
    return ResultReference(
        id=record_id,
        bytes=len(text.encode()),
        items=checked.settlement.result_items,
        expires_at=expires_at,
    )


def structured_text(tool: Tool, checked: Checked) -> str | None:
    """Returns the whole result's JSON text where no cut of it matches an output schema that MCP lists."""
    return (
        checked.settlement.result
        if checked.truncated and checked.shown is None and tool.object_output is not None
        else None
    )


def call_result(checked: Checked, reference: ResultReference | None) -> ToolCallResult:
    """Returns the answer to a call that ran, now or before."""
    settlement = checked.settlement
    return ToolCallResult(
        ok=settlement.ok,
        result=checked.shown,
        error=settlement.error,
        error_kind=settlement.error_kind,
        retryable=None if settlement.ok else settlement.retryable,
        tier=settlement.tier,
        attempts=settlement.executor_attempts,
        duration_ms=settlement.duration_ms,
        truncated=checked.truncated or None,
        result_ref=reference if checked.truncated else None,
        details=settlement.details or None,
    )


def failed(
    error_kind: ErrorKind, error: str, *, effect_possible: bool, retryable: bool = False
) -> Outcome:
    """Returns a failure that is not the executor's own report."""
    return Outcome(
        ok=False,
        error_kind=error_kind,
        error=error,
        effect_possible=effect_possible,
        retryable=retryable,
    )


def timed_out(execution: Execution) -> Outcome:
    """The failure of an execution that outlived its deadline."""
    return failed(
        "timeout",
        f"no result within {execution.deadline.seconds:g} s",
        effect_possible=True,
        retryable=True,
    )


def _settlement(tool: Tool, outcome: Outcome) -> Settlement:
    has_effect, is_write = tool.definition.effect != "read", tool.definition.effect == "write"
    details = dict(outcome.details)
    if not outcome.ok and outcome.effect_possible and is_write:
        details["effect"] = "possible"
    return Settlement(
        ok=outcome.ok,
        error_kind=outcome.error_kind if outcome.ok else outcome.error_kind or "internal",
        error=None if outcome.error is None else outcome.error.replace("\0", "�")[:MAX_ERROR_CHARS],
        retryable=outcome.retryable and not (is_write and outcome.effect_possible),
        effect_possible=has_effect and (outcome.effect_possible or outcome.ok),
        tier=outcome.tier,
        executor_attempts=outcome.attempts,
        duration_ms=round(outcome.duration_ms, 3),
        details=details,
    )


def _unusable(base: Settlement, kind: ErrorKind, error: str) -> Settlement:
    return replace(base, ok=False, error_kind=kind, error=error, retryable=False)


def _shown(tool: Tool, result: Any, text: str) -> tuple[Any, bool]:
    limit = tool.definition.inline_result_bytes
    if len(text.encode()) <= limit:
        return result, False
    return preview(result, tool.output, limit), True
