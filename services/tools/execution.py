"""Runs an execution within its slot and deadline; every failure becomes an outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from anyio import CapacityLimiter

from common import tracing
from contracts.deadline import Deadline
from contracts.errors import Overloaded, Unavailable
from contracts.events import EventLog
from contracts.tools.api import Execution, Outcome, ToolDefinition, ToolExecutor

# Executors keep the deadline themselves; one that does not is stopped this much later.
EXECUTOR_MARGIN_S = 1.0
MAX_WAITING = 256


@dataclass
class _Slots:
    limiter: CapacityLimiter
    users: int = 0


class ConcurrencySlots:
    """Bounds how many calls of one tool run at once in this replica.

    Holds the slots of every tool that sets `max_concurrency`, also over a reload.
    """

    def __init__(self) -> None:
        self._slots: dict[str, _Slots] = {}

    @asynccontextmanager
    async def slot(self, tool: ToolDefinition, deadline: Deadline) -> AsyncIterator[None]:
        """Holds one slot of the tool. Raises Overloaded if none is free in time."""
        most = tool.max_concurrency
        if most is None:
            yield
            return
        slots = self._slots.setdefault(tool.id, _Slots(CapacityLimiter(most)))
        slots.limiter.total_tokens = most
        if slots.users >= most + MAX_WAITING:
            raise Overloaded(
                f"`{tool.id}` runs as many calls as it may, and {MAX_WAITING} wait: retry shortly",
                retry_after_s=1,
            )
        slots.users += 1
        try:
            turn = await _acquired(slots.limiter, tool, deadline)
            try:
                yield
            finally:
                slots.limiter.release_on_behalf_of(turn)
        finally:
            slots.users -= 1
            if not slots.users:
                self._slots.pop(tool.id, None)


async def _acquired(limiter: CapacityLimiter, tool: ToolDefinition, deadline: Deadline) -> object:
    turn = object()
    try:
        async with asyncio.timeout(deadline.remaining()):
            await limiter.acquire_on_behalf_of(turn)
    except TimeoutError:
        raise Overloaded(
            f"`{tool.id}` runs as many calls as it may: retry shortly", retry_after_s=1
        ) from None
    return turn


@dataclass(frozen=True)
class ToolRunner:
    """The executors, by the names that definitions use, and the tools' slots."""

    executors: Mapping[str, ToolExecutor]
    slots: ConcurrencySlots
    events: EventLog

    async def run(self, execution: Execution) -> Outcome:
        """Runs the tool, in a span. Never raises but for its own cancellation."""
        with tracing.span(f"tools.{execution.tool.executor}", tracing.SpanKind.CLIENT) as span:
            outcome = await self._run(execution)
            if outcome.error_kind is not None:
                tracing.fail(span, outcome.error_kind)
            return outcome

    async def _run(self, execution: Execution) -> Outcome:
        tool, deadline = execution.tool, execution.deadline
        executor = self.executors.get(tool.executor)
        if executor is None:
            error = f"no executor `{tool.executor}` runs here"
            return Outcome(False, error_kind="unavailable", error=error, retryable=True)
        try:
            async with (
                self.slots.slot(tool, deadline),
                asyncio.timeout(deadline.remaining() + EXECUTOR_MARGIN_S),
            ):
                started = time.monotonic()
                outcome = await executor.execute(execution)
                return replace(outcome, duration_ms=(time.monotonic() - started) * 1000)
        except TimeoutError:
            error = f"no result within {deadline.seconds:g} s"
            return Outcome(
                False, error_kind="timeout", error=error, effect_possible=True, retryable=True
            )
        except Unavailable as away:
            return Outcome(False, error_kind="unavailable", error=away.message, retryable=True)
        except Exception as defect:  # noqa: BLE001  # recorded like any failure
            self.events.emit(
                "tools.executor_defect",
                tool_id=tool.id,
                error=type(defect).__name__,
                exc_info=defect,
            )
            error = "the executor failed; its log has the details under this request id"
            return Outcome(False, error_kind="internal", error=error, effect_possible=True)
