"""What a run came to, step by step: written to its row, and shown to whoever watches the channel."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar
from uuid import UUID

from pydantic import ValidationError

from common.tasks import end_tasks
from contracts.agents.api import Run, RunStore, StepName, StepRecord, ToolUse
from contracts.deadline import Deadline
from contracts.errors import (
    DaarionError,
    DatabaseUnavailable,
    DeadlineExceeded,
    Internal,
    Overloaded,
)
from contracts.workspace.messaging import Messaging, RunStep, StepKind

MAX_WAITING_STEPS = 64
MAX_STEPS_AT_ONCE = 16
SHOW_TIMEOUT_S = 2.0
GATHER_S = 0.05
STEPS_PER_ATTEMPT = 100
MAX_INDEX = 1_000
STORE_PATIENCE_S = 8.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0

T = TypeVar("T")


class RunLostError(Exception):
    """Another replica has taken the run over: this one must not touch anything more of it."""


class StepFeed:
    """Shows the steps of one run in its channel, in the background and in order; what cannot be shown is left out."""

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
        except ValidationError:  # a name that a model made up
            step = RunStep(index=self._index, kind=kind)
        self._waiting.append(step)
        self._index += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send())

    async def close(self) -> None:
        """Waits for what is queued, no longer than a step may take."""
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
            await asyncio.sleep(GATHER_S)  # steps come in twos and threes
            steps = [
                self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_STEPS_AT_ONCE))
            ]
            with contextlib.suppress(DaarionError):
                await self._messaging.run_steps(
                    run.agent_id, run.channel_id, str(run.id), steps, Deadline.after(SHOW_TIMEOUT_S)
                )


class Recorder:
    """Keeps the steps of one run. Every write is fenced: it fails once another replica owns the run."""

    def __init__(
        self, run: Run, store: RunStore, owner: UUID, lease_s: float, feed: StepFeed
    ) -> None:
        self.run = run
        self._store = store
        self._owner = owner
        self._lease_s = lease_s
        self._feed = feed
        self._saving: asyncio.Task[bool] | None = None
        self._began = time.monotonic()

    @contextlib.contextmanager
    def step(self, kind: StepName) -> Iterator[StepRecord]:
        """Times a step; what is known of it is written into the record inside. An error's type is noted and the error goes on."""
        started = time.monotonic()
        record = StepRecord(
            kind=kind, attempt=self.run.attempt, started_ms=round((started - self._began) * 1e3, 2)
        )
        try:
            yield record
        except DaarionError as error:
            record.ok, record.error = False, error.type
            raise
        except asyncio.CancelledError:  # the run's time is up, or its replica goes
            record.ok, record.error = False, DeadlineExceeded.type
            raise
        except Exception:
            record.ok, record.error = False, Internal.type
            raise
        finally:
            record.duration_ms = round((time.monotonic() - started) * 1e3, 2)
            self.run.steps.append(record)

    def save_soon(self) -> None:
        """Begins to write the run and does not wait: for what may be lost, as long as the next `save` comes before anything is done."""
        self._saving = asyncio.create_task(self._note_after(self._saving))

    async def ensure_saved(self) -> None:
        """Waits for what `save_soon` began, and writes the run where that came to nothing. Raises as `save`."""
        saving = self._saving
        await self.settle()
        if (
            saving is None
            or saving.cancelled()
            or saving.exception() is not None
            or not saving.result()
        ):
            await self.save()

    async def settle(self) -> None:
        """Waits for what `save_soon` began, whatever came of it: the next write holds all of it, and finds what is wrong."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            await asyncio.wait([saving])
            if not saving.cancelled():
                saving.exception()

    async def save(self) -> None:
        """Writes the run. Raises RunLostError, or DatabaseUnavailable when PostgreSQL stays away."""
        await self.settle()
        if not await patiently(
            lambda: self._store.note(self.run, self._owner, self._lease_s), STORE_PATIENCE_S
        ):
            raise RunLostError

    async def _note_after(self, earlier: asyncio.Task[bool] | None) -> bool:
        """Writes the run, never beside an earlier write: the older one must not come last."""
        if earlier is not None:
            await asyncio.wait([earlier])
            if not earlier.cancelled():
                earlier.exception()
        return await self._store.note(self.run, self._owner, self._lease_s)

    def degrade(self, part: str) -> None:
        """Notes what the run has to do without."""
        if part not in self.run.degraded:
            self.run.degraded.append(part)

    def show(self, kind: StepKind, **detail: str | bool | float | None) -> None:
        """Tells the watchers of the channel. Never blocks and never raises."""
        self._feed.show(kind, **detail)

    def show_calls(self, uses: Sequence[ToolUse]) -> None:
        """Tells what came of tool calls."""
        for use in uses:
            self.show(
                "tool_result",
                tool_id=use.tool_id,
                ok=use.ok,
                error_kind=use.error_kind,
                duration_ms=use.duration_ms,
            )


async def patiently(
    attempt: Callable[[], Awaitable[T]],
    seconds: float,
    on: tuple[type[DaarionError], ...] = (DatabaseUnavailable, Overloaded),
) -> T:
    """Repeats what may be repeated for so long while it fails with `on`. Raises what the last attempt raised."""
    until = Deadline.after(seconds)
    pause = FIRST_PAUSE_S
    while True:
        try:
            return await attempt()
        except on:
            if until.remaining() < pause:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)
