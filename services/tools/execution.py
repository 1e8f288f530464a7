"""Runs an execution within its slot and deadline; every failure becomes an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from contracts.errors import Unavailable
from contracts.events import EventLog
from contracts.tools.api import Execution, Outcome, ToolExecutor
from services.tools.slots import ConcurrencySlots

# Executors keep the deadline themselves; one that does not is stopped this much later.
EXECUTOR_MARGIN_S = 1.0


class ToolRunner:
    """The executors, by the names that definitions use, and the tools' slots."""

    def __init__(
        self, executors: Mapping[str, ToolExecutor], slots: ConcurrencySlots, events: EventLog
    ) -> None:
        self._executors = executors
        self._slots = slots
        self._events = events

    async def run(self, execution: Execution) -> Outcome:
        """Runs the tool. Never raises but for its own cancellation."""
        tool, deadline = execution.tool, execution.deadline
        executor = self._executors.get(tool.executor)
        if executor is None:
            error = f"no executor `{tool.executor}` runs here"
            return Outcome(False, error_kind="unavailable", error=error, retryable=True)
        try:
            async with (
                self._slots.slot(tool, deadline),
                asyncio.timeout(deadline.remaining() + EXECUTOR_MARGIN_S),
            ):
                return await executor.execute(execution)
        except TimeoutError:
            error = f"no result within {deadline.seconds:g} s"
            return Outcome(
                False, error_kind="timeout", error=error, effect_possible=True, retryable=True
            )
        except Unavailable as away:
            return Outcome(False, error_kind="unavailable", error=away.message, retryable=True)
        except Exception as defect:  # noqa: BLE001  # recorded like any failure
            self._events.emit(
                "tools.executor_defect",
                tool_id=tool.id,
                error=type(defect).__name__,
                exc_info=defect,
            )
            error = "the executor failed; its log has the details under this request id"
            return Outcome(False, error_kind="internal", error=error, effect_possible=True)
