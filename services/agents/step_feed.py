"""Shows a run's steps to whoever watches its channel."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from pydantic import ValidationError

from common.tasks import end_tasks
from contracts.agents.runs import Run
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.workspace.messaging_service import Messaging, RunStep, StepKind

MAX_WAITING_STEPS = 64
MAX_STEPS_AT_ONCE = 16
SHOW_TIMEOUT_S = 2.0
GATHER_S = 0.05
STEPS_PER_ATTEMPT = 100
MAX_INDEX = 1_000


class StepFeed:
    """Sends the steps of one run in the background, in order; steps that cannot be sent are
    dropped.
    """

    def __init__(self, messaging: Messaging, run: Run) -> None:
        self._messaging = messaging
        self._run = run
        self._waiting: deque[RunStep] = deque(maxlen=MAX_WAITING_STEPS)
        self._index = min((run.attempt - 1) * STEPS_PER_ATTEMPT, MAX_INDEX - STEPS_PER_ATTEMPT)
        self._task: asyncio.Task[None] | None = None

    def show(self, kind: StepKind, **detail: str | bool | float | None) -> None:
        """Queues one step. Never blocks and never raises."""
        if self._run.channel_id is None or self._index >= MAX_INDEX:
            return
        try:
            step = RunStep(index=self._index, kind=kind, detail=detail)
        except ValidationError:  # a tool name that the model invented
            step = RunStep(index=self._index, kind=kind)
        self._waiting.append(step)
        self._index += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send())

    async def close(self) -> None:
        """Waits until the queued steps are sent, at most `SHOW_TIMEOUT_S`."""
        if self._task is None:
            return
        try:
            await asyncio.wait([self._task], timeout=SHOW_TIMEOUT_S)
        finally:
            await end_tasks([self._task])

    async def _send(self) -> None:
        run = self._run
        assert run.channel_id is not None  # checked by `show`
        while self._waiting:
            await asyncio.sleep(GATHER_S)  # steps come in twos and threes: send them together
            steps = [
                self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_STEPS_AT_ONCE))
            ]
            with contextlib.suppress(DaarionError):
                await self._messaging.run_steps(
                    run.agent_id, run.channel_id, str(run.id), steps, Deadline.after(SHOW_TIMEOUT_S)
                )
