"""One attempt at one run, from its first step to its recorded end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from common.tasks import end_tasks
from contracts.agents.api import (
    AgentMemory,
    AgentUsage,
    AgentUsageEvent,
    Blueprint,
    Exchange,
    Outcome,
    Run,
    RunStore,
)
from contracts.agents.notices import (
    AgentError,
    AgentNotice,
    AgentNotices,
    ReplySent,
    RunEnded,
    RunStarted,
)
from contracts.deadline import Deadline
from contracts.errors import DaarionError, DatabaseUnavailable, DeadlineExceeded, Internal
from contracts.events import EventLog
from contracts.workspace.messaging import Messaging
from services.agents.delivery import Delivery, PostponedError
from services.agents.journal import beginning_of
from services.agents.language import Apology, apology, language_of
from services.agents.pipeline import (
    EmptyQuestionError,
    NoAnswerError,
    NothingToAnswerError,
    Pipeline,
)
from services.agents.prompt import Known
from services.agents.recording import STORE_PATIENCE_S, Recorder, RunLostError, StepFeed, patiently

MAX_ATTEMPTS = 5
MAX_DELIVERIES = 500
"""Attempts of any kind; those of a delivery end by time, this is for what fails without a reason."""
STORE_TIMEOUT_S = 10.0
POSTPONE_S = 5.0


@contextlib.asynccontextmanager
async def _bounded(deadline: Deadline) -> AsyncIterator[None]:
    """Ends what is inside when the deadline passes. Raises DeadlineExceeded then."""
    try:
        async with asyncio.timeout(deadline.remaining()):
            yield
    except TimeoutError:
        raise deadline.exceeded() from None


@dataclass(frozen=True)
class AttemptPorts:
    """What an attempt stands on beside the pipeline and the delivery."""

    store: RunStore
    messaging: Messaging
    memory: AgentMemory
    usage: AgentUsage
    notices: AgentNotices
    events: EventLog


@dataclass(frozen=True)
class Attempts:
    """Works on runs in the name of `owner`."""

    ports: AttemptPorts
    pipeline: Pipeline
    delivery: Delivery
    blueprints: Callable[[], Mapping[str, Blueprint]]
    owner: UUID
    lease_s: float
    _showing: set[asyncio.Task[None]] = field(default_factory=set)

    async def work(self, run: Run) -> None:
        """Brings the run to its end, or leaves it for another attempt. Raises nothing that a run can cause."""
        started = time.monotonic()
        feed = StepFeed(self.ports.messaging, run)
        recorder = Recorder(run, self.ports.store, self.owner, self.lease_s, feed)
        try:
            outcome = await self._brought_to_reply(recorder)
            await recorder.settle()
            if not await patiently(
                lambda: self.ports.store.finish(run, outcome, self.owner), STORE_PATIENCE_S
            ):
                raise RunLostError
            self._tell(run, outcome, time.monotonic() - started)
        except RunLostError:
            self.ports.events.emit("agents.run_lost", run_id=str(run.id), attempt=run.attempt)
        except PostponedError:
            self.ports.events.emit("agents.run_postponed", run_id=str(run.id), attempt=run.attempt)
            await self._postpone(run)
        except (
            DaarionError
        ) as error:  # the database is away: the lease runs out, and the run is found again
            self.ports.events.emit(
                "agents.run_left", run_id=str(run.id), attempt=run.attempt, error=error.type
            )
        finally:
            self._end_later(feed)
            await recorder.settle()

    async def close(self) -> None:
        """Ends what is still being shown."""
        await end_tasks(list(self._showing))

    def _end_later(self, feed: StepFeed) -> None:
        """Nobody waits for the last steps to be shown."""
        task = asyncio.create_task(feed.close())
        self._showing.add(task)
        task.add_done_callback(self._showing.discard)

    async def _brought_to_reply(self, recorder: Recorder) -> Outcome:
        """The order of things: answer, deliver, remember."""
        run = recorder.run
        blueprint = self.blueprints().get(run.agent_id)
        if run.attempt > MAX_DELIVERIES:
            run.error = run.error or "given_up"
            return "undelivered"
        if run.state == "posting":
            outcome = await self.delivery.resume(recorder)
        else:
            run.state = "running"
            self._notify(RunStarted, run, attempt=run.attempt)
            if run.claimed:
                await (
                    recorder.save()
                )  # from here on it counts: what kills its replica each time must end
            try:
                text, outcome = await self._answered(recorder, blueprint)
            except NothingToAnswerError:
                return "ignored"
            outcome = await self.delivery.deliver(recorder, text, outcome)
        if outcome in {"answered", "failed"} and any(
            step.kind == "reply" and step.ok for step in run.steps
        ):
            self._notify(ReplySent, run, status=outcome)
        if blueprint is not None and outcome == "answered" and blueprint.memory.store:
            await self._remember(recorder)
        return outcome

    async def _answered(
        self, recorder: Recorder, blueprint: Blueprint | None
    ) -> tuple[str, Outcome]:
        """The model's answer, or a polite sentence in its place."""
        run = recorder.run
        kind: Apology = "failed"
        try:
            if blueprint is None:
                raise NoAnswerError
            if run.attempt > MAX_ATTEMPTS:
                raise DeadlineExceeded("given up after several attempts")
            deadline = Deadline.after(blueprint.limits.seconds)
            async with _bounded(deadline):
                return await self.pipeline.answer(recorder, blueprint, deadline), "answered"
        except EmptyQuestionError:
            kind, run.error = "empty", "empty_message"
        except NoAnswerError:
            run.error = "no_answer" if blueprint is not None else "unknown_agent"
        except (DatabaseUnavailable, RunLostError, NothingToAnswerError):
            raise
        except DeadlineExceeded as error:
            kind, run.error = "late", error.type
        except DaarionError as error:
            run.error = error.type
        except Exception as error:  # noqa: BLE001  # whoever asked must not wait for a defect to happen five times
            run.error = Internal.type
            self.ports.events.emit(
                "agents.defect", run_id=str(run.id), error=type(error).__name__, exc_info=error
            )
        recorder.show("failed", error=run.error)
        return apology(
            kind, language_of(_asked(run), blueprint.language if blueprint is not None else "uk")
        ), "failed"

    async def _remember(self, recorder: Recorder) -> None:
        """Stores the exchange; without memory the run ends all the same."""
        run = recorder.run
        known = _known(run)
        if known is None or not run.reply:
            return
        question = known.context.question
        exchange = Exchange(
            run.tenant,
            run.channel_id,
            question.text,
            run.reply,
            f"run-{run.id}",
            {"run_id": str(run.id), "sender_id": question.sender_id},
        )
        try:
            with recorder.step("store"):
                await self.ports.memory.remember(exchange, Deadline.after(STORE_TIMEOUT_S))
        except DaarionError:
            recorder.degrade("memory_store")
        else:
            recorder.show("stored")

    async def _postpone(self, run: Run) -> None:
        try:
            await self.ports.store.postpone(run, self.owner, POSTPONE_S)
        except DaarionError as error:  # its lease runs out instead
            self.ports.events.emit(
                "agents.run_left", run_id=str(run.id), attempt=run.attempt, error=error.type
            )

    def _tell(self, run: Run, outcome: Outcome, seconds: float) -> None:
        asked = sum(step.kind == "llm" for step in run.steps)
        event = AgentUsageEvent(
            id=run.id,
            occurred_at=datetime.now(UTC),
            agent_id=run.agent_id,
            microdao_id=run.microdao_id,
            channel_id=run.channel_id,
            entrypoint=run.invocation.entrypoint,
            outcome=outcome,
            error=run.error,
            model=run.model,
            steps=asked,
            tool_calls=run.tool_calls,
            prompt_tokens=run.prompt_tokens,
            completion_tokens=run.completion_tokens,
            duration_ms=round(seconds * 1e3),
        )
        self.ports.usage.publish(event)
        if outcome in {"failed", "undelivered", "indeterminate"}:
            self._notify(AgentError, run, status=outcome, error_type=run.error or outcome)
        self._notify(
            RunEnded, run, attempt=run.attempt, status=outcome, duration_ms=round(seconds * 1e3)
        )
        self.ports.events.emit(
            "agents.run",
            run_id=str(run.id),
            agent_id=run.agent_id,
            microdao_id=run.microdao_id,
            outcome=outcome,
            error=run.error,
            attempt=run.attempt,
            steps=asked,
            tool_calls=run.tool_calls,
            degraded=run.degraded or None,
            duration_ms=event.duration_ms,
        )

    def _notify(self, kind: type[AgentNotice], run: Run, **more: str | int) -> None:
        number = f"-{run.attempt}" if kind is RunStarted else ""
        notice = {
            "event_id": f"{run.id}-{kind.subject}{number}",
            "ts": datetime.now(UTC),
            "run_id": run.id,
            "agent_id": run.agent_id,
            "microdao_id": run.microdao_id,
            "channel_id": run.channel_id,
            "entrypoint": run.invocation.entrypoint,
        }
        self.ports.notices.publish(kind.model_validate({**notice, **more}))


def _known(run: Run) -> Known | None:
    """What the run began with, None where it did not come so far or another version wrote it."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        if (beginning := beginning_of(run.journal)) is not None:
            return beginning.known
    return None


def _asked(run: Run) -> str:
    known = _known(run)
    return known.context.question.text if known is not None else run.invocation.payload.text or ""
