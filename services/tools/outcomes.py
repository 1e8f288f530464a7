"""From an outcome to its settlement and answer; results are checked, bounded, previewed, paged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from pydantic import BaseModel, Field

from contracts.errors import InvalidRequest
from contracts.shapes import Strict
from contracts.tools.api import (
    Decision,
    ErrorKind,
    Outcome,
    ResultReference,
    ToolCallResult,
)
from contracts.tools.ledger import RecordedCall, Settlement, StoredResult
from services.tools.registry import Tool
from services.tools.schemas import Budget, CompiledSchema

MAX_PAGE_BYTES = 256 * 1024
# Items of an array and characters of a text that successive previews keep.
_CUTS = ((100, 2_000), (30, 1_000), (10, 500), (5, 200), (3, 100), (1, 50), (1, 10), (0, 0))
# Results above this many bytes are checked in a thread, off the event loop.
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
    attempts=0,
)


class PageRequest(Strict):
    """Query of `GET /results/{id}`.

    `offset` and `limit` count an array's items, else characters of the JSON text.
    """

    microdao_id: str = Field(min_length=1, max_length=256)
    offset: int = Field(default=0, ge=0, lt=2**53)
    limit: int | None = Field(default=None, ge=1, le=MAX_PAGE_BYTES)


class ResultPage(BaseModel):
    """One page. `unit` is `items` (`result` is an array) or `characters` (`text` is JSON text).

    `total` counts the whole in that unit; `next_offset` is None on the last page.
    """

    id: str
    unit: str
    offset: int
    total: int
    next_offset: int | None = None
    result: list[Any] | None = None
    text: str | None = None


def to_text(result: Any) -> str:
    """Returns the result as JSON text. Raises TypeError for values and texts that JSON forbids."""
    try:
        return orjson.dumps(result).decode()
    except orjson.JSONEncodeError as error:
        raise TypeError(str(error)) from None


def preview(result: Any, schema: CompiledSchema | None, max_bytes: int) -> Any:
    """Returns the result, arrays and texts cut so that it fits and matches its schema, or None.

    Takes the largest of a few cuts that fits. Objects keep all members: a missing one would be
    taken as a statement.
    """
    for items, characters in _CUTS:
        candidate = _cut(result, items, characters)
        if len(orjson.dumps(candidate)) <= max_bytes and (
            schema is None or schema.violation(candidate) is None
        ):
            return candidate
    return None


def _cut(value: Any, items: int, characters: int) -> Any:
    if isinstance(value, str):
        return value[:characters]
    if isinstance(value, list):
        return [_cut(inner, items, characters) for inner in value[:items]]
    if isinstance(value, dict):
        return {name: _cut(inner, items, characters) for name, inner in value.items()}
    return value


def page(stored: StoredResult, wanted: PageRequest) -> ResultPage:
    """Returns one page of a stored result. Raises InvalidRequest for an offset beyond its end."""
    whole = stored.body if stored.items is None else orjson.loads(stored.body)
    if wanted.offset > len(whole):
        raise InvalidRequest(f"offset is beyond the end: this result has {len(whole)}")
    rest = whole[wanted.offset : wanted.offset + (wanted.limit or MAX_PAGE_BYTES)]
    taken = rest if isinstance(rest, str) else list(_fitting(rest))
    end = wanted.offset + len(taken)
    return ResultPage(
        id=str(stored.id),
        unit="characters" if isinstance(taken, str) else "items",
        offset=wanted.offset,
        total=len(whole),
        next_offset=end if end < len(whole) else None,
        result=None if isinstance(taken, str) else taken,
        text=taken if isinstance(taken, str) else None,
    )


def _fitting(items: list[Any]) -> Iterator[Any]:
    """Yields items of MAX_PAGE_BYTES together, but at least one."""
    size = 0
    for position, item in enumerate(items):
        size += len(orjson.dumps(item)) + 1
        if position and size > MAX_PAGE_BYTES:
            return
        yield item


@dataclass(frozen=True)
class CallAnswer:
    """The answer, and whether the call ran (now or before) rather than being refused.

    `reference` leads to a kept result. `structured` is the whole result's JSON text, for tools
    whose output schema MCP lists: a shortened result would not match it, so `result` is empty then.
    """

    result: ToolCallResult
    executed: bool = False
    reference: ResultReference | None = None
    structured: str | None = None


async def check_outcome(tool: Tool, outcome: Outcome) -> Settlement:
    """Returns the settlement of an execution.

    The result must be JSON, within its bound, and match the output schema.
    """
    base = _settlement(tool, outcome)
    if not outcome.ok:
        return base
    try:
        text = to_text(outcome.result)
    except TypeError:
        error = "the tool's result cannot be written as JSON (UTF-8 texts, 64-bit numbers)"
        return _unusable(base, "invalid_result", error)
    if len(text) > MAX_INLINE_CHECK_BYTES:
        return await asyncio.to_thread(_check_text, tool, base, text)
    return _check_text(tool, base, text)


def _check_text(tool: Tool, base: Settlement, text: str) -> Settlement:
    definition, result = tool.definition, base.result
    if len(text.encode()) > definition.max_result_bytes:
        error = f"the tool's result is over its bound of {definition.max_result_bytes} bytes"
        return _unusable(base, "too_large", error)
    budget = Budget(RESULT_BUDGET_STEPS, RESULT_BUDGET_CPU_S)
    violation = None if tool.output is None else tool.output.violation(result, budget)
    if violation is not None:
        where, expected = f"result{violation.path.removeprefix('$')}", violation.expected
        error = f"the tool's result does not match its output_schema: {where}: expected {expected}"
        details = {"path": violation.path, "expected": expected, "raw": text[:MAX_RAW_CHARS]}
        return replace(_unusable(base, "invalid_result", error), details=details)
    items = len(result) if isinstance(result, list) else None
    whole = replace(base, body=text, items=items, audit_result=definition.record_result)
    return _bounded(tool, whole, result, text)


def recall(tool: Tool, recorded: RecordedCall) -> Settlement:
    """Returns the settlement of a call that ended before, its result as callers see it."""
    settlement = recorded.settlement
    assert settlement is not None
    if not settlement.ok or settlement.body is None:
        return settlement
    return _bounded(tool, settlement, orjson.loads(settlement.body), settlement.body)


def refused(decision: Decision, tool_id: str, tool_version: int | None) -> CallAnswer:
    """Returns the answer to a call that policy did not let through."""
    details = {"rule": decision.rule, "path": decision.path, "expected": decision.expected}
    result = ToolCallResult(
        ok=False,
        error=decision.reason,
        error_kind=decision.error_kind,
        retryable=decision.retryable,
        details={name: value for name, value in details.items() if value is not None},
        tool_id=tool_id,
        tool_version=tool_version,
    )
    return CallAnswer(result)


def answered(
    tool: Tool,
    settlement: Settlement,
    record: UUID,
    *,
    version: int | None,
    kept_until: datetime | None = None,
    replayed: bool | None = None,
) -> CallAnswer:
    """Returns the answer to a call that ran, now or before."""
    reference = _reference(settlement, record, kept_until)
    answer = {
        **vars(settlement),
        "retryable": None if settlement.ok else settlement.retryable,
        "details": settlement.details or None,
        "truncated": settlement.truncated or None,
        "result_ref": reference if settlement.truncated else None,
        "tool_id": tool.definition.id,
        "tool_version": version,
        "replayed": replayed,
    }
    lost = settlement.truncated and settlement.result is None and tool.object_output is not None
    return CallAnswer(
        ToolCallResult.model_validate(answer),
        executed=True,
        reference=reference,
        structured=settlement.body if lost else None,
    )


def _reference(
    settlement: Settlement, record: UUID, kept_until: datetime | None
) -> ResultReference | None:
    if settlement.result_bytes is None:
        return None
    return ResultReference(
        id=str(record),
        bytes=settlement.result_bytes,
        items=settlement.items,
        expires_at=None if kept_until is None else kept_until.isoformat(),
    )


def _settlement(tool: Tool, outcome: Outcome) -> Settlement:
    has_effect, is_write = tool.definition.effect != "read", tool.definition.effect == "write"
    possible = {"effect": "possible"} if outcome.effect_possible and is_write else {}
    checked: dict[str, Any] = {
        "retryable": outcome.retryable and not (is_write and outcome.effect_possible),
        "effect_possible": has_effect and (outcome.effect_possible or outcome.ok),
        "duration_ms": round(outcome.duration_ms, 3),
    }
    if outcome.error is not None:
        checked["error"] = outcome.error.replace("\0", "�")[:MAX_ERROR_CHARS]
    if not outcome.ok:
        checked |= {
            "result": None,
            "error_kind": outcome.error_kind or "internal",
            "details": {**outcome.details, **possible},
        }
    return Settlement(**{**vars(outcome), **checked})


def _unusable(base: Settlement, kind: ErrorKind, error: str) -> Settlement:
    return replace(base, ok=False, result=None, error_kind=kind, error=error, retryable=False)


def _bounded(tool: Tool, settlement: Settlement, result: Any, text: str) -> Settlement:
    """Returns the settlement with its result whole, or a preview where the whole is too long."""
    limit = tool.definition.inline_result_bytes
    if len(text.encode()) <= limit:
        return replace(settlement, result=result)
    return replace(settlement, result=preview(result, tool.output, limit), truncated=True)
