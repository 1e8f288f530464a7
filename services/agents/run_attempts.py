"""One attempt at one run, from its first step to its recorded end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common import tracing
from common.tasks import end_tasks, spawn
from contracts.access.principals import OURSELVES, Principal, acting_as
from contracts.agents.blueprints import Blueprint
from contracts.agents.ports import AgentMemory, RunStore
from contracts.agents.runs import Outcome, Run
from contracts.deadline import Deadline
from contracts.errors import (
    DaarionError,
    DatabaseUnavailable,
    DeadlineExceeded,
    Forbidden,
    Internal,
)
from contracts.workspace.messaging_service import Messaging
from services.agents.announcements import RunAnnouncements
from services.agents.attempt_span import OUTCOME, attempt_span
from services.agents.delivery import Delivery, PostponedError
from services.agents.journal import RunStart, start_of
from services.agents.language import Apology, apology, language_of
from services.agents.pipeline import Pipeline
from services.agents.run_recorder import RunLostError, RunRecorder, StepFeed
from services.agents.scope import (
    EmptyQuestionError,
    NoAnswerError,
    NothingToAnswerError,
    RunScope,
)

MAX_ANSWER_ATTEMPTS = 5
MAX_ATTEMPTS = 500
"""Bounds runs that keep failing. Deliveries normally end by `Delivery.give_up_s`."""
STORE_TIMEOUT_S = 10.0
POSTPONE_S = 5.0


@dataclass(frozen=True)
class RunAttempts:
    """Works on runs that this process has leased. `caller_of` reads the claims of their callers."""

    store: RunStore
    messaging: Messaging
    memory: AgentMemory
    announcements: RunAnnouncements
    pipeline: Pipeline
    delivery: Delivery
    blueprints: Callable[[], Mapping[str, Blueprint]]
    caller_of: Callable[[Mapping[str, Any] | None], Principal]
    lease_s: float
    _closing_feeds: set[asyncio.Task[None]] = field(default_factory=set)

    async def work(self, run: Run) -> None:
        """Brings the run to its end, or leaves it for another attempt.

        Expected failures end or postpone the run; only defects are raised.
        """
        caller, refused = OURSELVES.narrowed(run.tenant), None
        try:
            caller = self.caller_of(run.caller).narrowed(run.tenant)
        except Forbidden as error:  # an apology says so
            refused = error
        except DaarionError as error:
            self._emit("agents.run_left", run, error=error.type)
            return
        with acting_as(caller), attempt_span(run) as span:
            await self._work(run, refused, span)
            if run.error is not None:
                tracing.fail(span, run.error)

    async def _work(self, run: Run, refused: Forbidden | None, span: tracing.Span) -> None:
        started = time.monotonic()
        feed = StepFeed(self.messaging, run)
        recorder = RunRecorder(run, self.store, self.lease_s, feed)
        try:
            outcome = await self._answer_and_deliver(run, recorder, refused)
            await recorder.finish(outcome)
            span.set_attribute(OUTCOME, outcome)
            self.announcements.ended(run, outcome, time.monotonic() - started)
        except RunLostError:
            self._emit("agents.run_lost", run)
        except PostponedError:
            self._emit("agents.run_postponed", run)
            await self._postpone(run, recorder)
        except DaarionError as error:
            # The database is away: the lease runs out, and another attempt finds the run.
            self._emit("agents.run_left", run, error=error.type)
        finally:
            # The next run does not wait until this one's last steps are shown.
            spawn(feed.close(), self._closing_feeds)
            await recorder.settle()

    async def close(self) -> None:
        """Drops the steps that were not shown yet."""
        await end_tasks(list(self._closing_feeds))

    async def _answer_and_deliver(
        self, run: Run, recorder: RunRecorder, refused: Forbidden | None
    ) -> Outcome:
        """Answers, delivers, remembers, in this order."""
        blueprint = self.blueprints().get(run.agent_id)
        # A reply is the graph's own word: who asked for it may be gone when it is posted.
        own = OURSELVES.narrowed(run.tenant)
        if run.attempt > MAX_ATTEMPTS:
            recorder.record_error("given_up")
            return "undelivered"
        if run.state == "posting":
            with acting_as(own):
                outcome = await self.delivery.resume(run, recorder)
        else:
            self.announcements.started(run)
            await recorder.record_attempt()
            try:
                text, outcome = await self._answer(run, recorder, blueprint, refused)
            except NothingToAnswerError as nothing:
                if nothing.error_type is not None:
                    recorder.record_error(nothing.error_type)
                return "ignored"
            with acting_as(own):
                outcome = await self.delivery.deliver(run, recorder, text, outcome)
        is_posted = any(step.kind == "reply" and step.ok for step in run.steps)
        if outcome in {"answered", "failed"} and is_posted:
            self.announcements.reply_sent(run, outcome)
        if blueprint is not None and outcome == "answered" and blueprint.memory.store:
            await self._remember(run, recorder)
        return outcome

    async def _answer(
        self,
        run: Run,
        recorder: RunRecorder,
        blueprint: Blueprint | None,
        refused: Forbidden | None,
    ) -> tuple[str, Outcome]:
        """The model's answer, or an apology in its place."""
        kind: Apology = "failed"
        try:
            if refused is not None:
                raise refused
            if blueprint is None:
                raise NoAnswerError
            if run.attempt > MAX_ANSWER_ATTEMPTS:
                raise DeadlineExceeded("given up after several attempts")
            deadline = Deadline.after(blueprint.limits.seconds)
            scope = RunScope(run, recorder, blueprint, deadline)
            async with asyncio.timeout(deadline.remaining()):
                return await self.pipeline.answer(scope), "answered"
        except EmptyQuestionError:
            kind, failure = "empty", "empty_message"
        except NoAnswerError:
            failure = "no_answer" if blueprint is not None else "unknown_agent"
        except (DatabaseUnavailable, RunLostError, NothingToAnswerError):
            raise
        except (DeadlineExceeded, TimeoutError):
            kind, failure = "late", DeadlineExceeded.type
        except DaarionError as error:
            failure = error.type
        # retrying would repeat the defect while a person waits
        except Exception as error:  # noqa: BLE001
            failure = Internal.type
            self.announcements.events.emit(
                "agents.defect", run_id=str(run.id), error=type(error).__name__, exc_info=error
            )
        recorder.record_error(failure)
        recorder.show("failed", error=failure)
        default = blueprint.language if blueprint is not None else "uk"
        return apology(kind, language_of(_question_text(run), default)), "failed"

    async def _remember(self, run: Run, recorder: RunRecorder) -> None:
        """Stores question and answer; when memory is away the run ends without it."""
        start = _start(run)
        if start is None or not run.reply:
            return
        question = start.question
        content = {"user_message": question.text, "agent_reply": run.reply}
        meta = {"run_id": str(run.id), "sender_id": question.sender_id}
        try:
            with recorder.step("store"):
                await self.memory.remember(
                    run.tenant,
                    run.channel_id,
                    content,
                    Deadline.after(STORE_TIMEOUT_S),
                    key=f"run-{run.id}",
                    meta=meta,
                )
        except DaarionError:
            recorder.record_degraded("memory_store")
        else:
            recorder.show("stored")

    async def _postpone(self, run: Run, recorder: RunRecorder) -> None:
        try:
            await recorder.release(POSTPONE_S)
        except DaarionError as error:  # its lease runs out instead
            self._emit("agents.run_left", run, error=error.type)

    def _emit(self, event: str, run: Run, **fields: str) -> None:
        self.announcements.events.emit(event, run_id=str(run.id), attempt=run.attempt, **fields)


def _start(run: Run) -> RunStart | None:
    """What the run began with; None before that, or when another version wrote it."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return start_of(run.journal)
    return None


def _question_text(run: Run) -> str:
    start = _start(run)
    return start.question.text if start is not None else run.invocation.payload.text or ""
