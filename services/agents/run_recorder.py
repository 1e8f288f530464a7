"""Writes down what happens in a run: into its row, and as live steps into its channel."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from common import tracing
from common.retry import retry
from common.tasks import end_tasks
from contracts.agents.ports import RunStore
from contracts.agents.runs import Outcome, Run, StepName, StepRecord, ToolUse
from contracts.deadline import Deadline
from contracts.errors import (
    DaarionError,
    DatabaseUnavailable,
    DeadlineExceeded,
    Internal,
    Overloaded,
)
from contracts.llm.answers import ProxyResponse
from contracts.workspace.messaging_service import Messaging, RunStep, StepKind
from services.agents.journal import UNPOSTED, RunStart, answer_entry, start_entry

MAX_WAITING_STEPS = 64
MAX_STEPS_AT_ONCE = 16
SHOW_TIMEOUT_S = 2.0
GATHER_S = 0.05
STEPS_PER_ATTEMPT = 100
MAX_INDEX = 1_000
STORE_PATIENCE_S = 8.0


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


class RunLostError(Exception):
    """Another replica has taken the run over: this one must not change anything of it any more."""


class RunRecorder:
    """The only writer of what one run contains; `AgentRuns` accepts, leases and purges its row.

    Pipeline and delivery read the `Run` and report here what happened; the recorder asks nothing of
    them. Every write to the store is fenced: it raises RunLostError once another replica owns the
    run, and DatabaseUnavailable when PostgreSQL stays away.
    """

    def __init__(self, run: Run, store: RunStore, lease_s: float, feed: StepFeed) -> None:
        self._run = run
        self._store = store
        self._lease_s = lease_s
        self._feed = feed
        self._saving: asyncio.Task[bool] | None = None
        self._began = time.monotonic()

    @contextlib.contextmanager
    def step(self, kind: StepName) -> Iterator[StepRecord]:
        """Times a step and appends its record, which the caller fills in; errors are noted.

        A step is a span of the run's trace.
        """
        span = tracing.start(f"agent.{kind}")
        started = time.monotonic()
        record = StepRecord(
            kind=kind,
            attempt=self._run.attempt,
            started_ms=round((started - self._began) * 1e3, 2),
        )
        try:
            with tracing.entered(span):
                yield record
        except DaarionError as error:
            record.ok, record.error = False, error.type
            raise
        except asyncio.CancelledError:  # the run's time is up, or its replica closes
            record.ok, record.error = False, DeadlineExceeded.type
            raise
        except Exception:
            record.ok, record.error = False, Internal.type
            raise
        finally:
            record.duration_ms = round((time.monotonic() - started) * 1e3, 2)
            self._run.steps.append(record)
            if record.error is not None:
                tracing.fail(span, record.error)
            span.end()

    def show(self, kind: StepKind, **detail: str | bool | float | None) -> None:
        """Shows a step to whoever watches the channel. Never blocks and never raises."""
        self._feed.show(kind, **detail)

    async def record_attempt(self) -> None:
        """The attempt begins, without the error of an earlier one. A run that was taken over is
        saved now, so that the attempt counts: a run that kills its replica each time must end.
        """
        self._run.state, self._run.error = "running", None
        if self._run.claimed:
            await self.save()

    def reset_tool_calls(self) -> None:
        """The pipeline begins: an earlier attempt's calls are repeated and counted again."""
        self._run.tool_calls = 0

    def record_run_start(self, start: RunStart) -> None:
        """The run's context is complete. It is saved in the background: nothing was done yet."""
        self._run.journal.append(start_entry(start))
        self._run.memory_ids = [item.id for item in start.memories]
        self.save_soon()

    async def record_refit(self, start: RunStart) -> None:
        """The run begins anew with a smaller model; saved at once."""
        self._run.journal[:] = [start_entry(start)]
        await self.save()

    def record_answer(self, answer: ProxyResponse, duration_ms: float, *, is_reply: bool) -> None:
        """The model answered. Every answer but the reply is journaled: a resumed run counts its
        steps, and so names its calls, as this one does.
        """
        run = self._run
        run.model = answer.model_resolved
        run.prompt_tokens += answer.usage.prompt_tokens
        run.completion_tokens += answer.usage.completion_tokens
        self.show(
            "llm", model=answer.model_resolved, tokens=answer.usage.total_tokens, ms=duration_ms
        )
        if not is_reply:
            run.journal.append(answer_entry(answer))
            self.save_soon()

    def record_calls(self, uses: Sequence[ToolUse]) -> None:
        """Tools were called."""
        self._run.tool_calls += sum(use.executed for use in uses)
        for use in uses:
            self.show(
                "tool_result",
                tool_id=use.tool_id,
                ok=use.ok,
                error_kind=use.error_kind,
                duration_ms=use.duration_ms,
            )

    def record_degraded(self, part: str) -> None:
        """The run goes on without `part`."""
        if part not in self._run.degraded:
            self._run.degraded.append(part)

    def record_error(self, error_type: str) -> None:
        """Something failed; the attempt's first error stays."""
        self._run.error = self._run.error or error_type

    def record_reply(self, text: str) -> None:
        """The run has its reply."""
        self._run.reply = text

    async def record_posting(self) -> None:
        """The reply is about to be posted for the first time; saved before it is."""
        self._run.state, self._run.posting_since = "posting", datetime.now(UTC)
        await self.save()

    def record_unposted(self) -> None:
        """The messaging service certainly did not take the post."""
        self._run.journal.append(UNPOSTED)

    async def record_post_retry(self) -> None:
        """A post that was certainly not taken is about to be repeated; saved before it is."""
        self._run.journal.remove(UNPOSTED)
        await self.save()

    async def save(self) -> None:
        """Writes the run and waits."""
        await self.settle()
        await self._fenced(lambda: self._store.note(self._run, self._lease_s))

    def save_soon(self) -> None:
        """Saves in the background, for what may be lost until something is changed."""
        self._saving = asyncio.create_task(self._note_after(self._saving))

    async def ensure_saved(self) -> None:
        """Waits for the background save, and saves again where that failed."""
        saving = self._saving
        await self.settle()
        if saving is None or saving.cancelled() or saving.exception() or not saving.result():
            await self.save()

    async def settle(self) -> None:
        """Waits for the background save. Its failure is ignored: the next save repeats it."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            await _ended(saving)

    async def finish(self, outcome: Outcome) -> None:
        """Ends the run."""
        await self.settle()
        await self._fenced(lambda: self._store.finish(self._run, outcome))

    async def release(self, delay_s: float) -> None:
        """Gives the run back; any replica may take it after `delay_s`."""
        await self._store.release(self._run, delay_s)

    async def _note_after(self, earlier: asyncio.Task[bool] | None) -> bool:
        """Writes the run, never beside an earlier write: the older one must not come last."""
        if earlier is not None:
            await _ended(earlier)
        return await self._store.note(self._run, self._lease_s)

    async def _fenced(self, write: Callable[[], Awaitable[bool]]) -> None:
        owned = await retry(
            write,
            lambda error: isinstance(error, DatabaseUnavailable | Overloaded),
            within_s=STORE_PATIENCE_S,
        )
        if not owned:
            raise RunLostError


async def _ended(task: asyncio.Task[bool]) -> None:
    """Waits for a task and reads its exception, so that asyncio does not report it as lost."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
