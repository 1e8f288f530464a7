"""What the outside learns of a run: usage events, notices for neighbours, and the event log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from contracts.agents.announcements import (
    AgentError,
    AgentNotice,
    AgentUsageEvent,
    ReplySent,
    RunEnded,
    RunStarted,
)
from contracts.agents.runs import Outcome, Run
from contracts.events import EventLog, Publisher


@dataclass(frozen=True)
class RunAnnouncements:
    """Announces what happens to runs. Nothing here blocks or raises."""

    outside: Publisher
    events: EventLog

    def started(self, run: Run) -> None:
        """A replica begins to work on the run."""
        self._notify(RunStarted, run, f"-{run.attempt}", attempt=run.attempt)

    def reply_sent(self, run: Run, outcome: Outcome) -> None:
        """The reply, or the apology in its place, is in the channel."""
        self._notify(ReplySent, run, status=outcome)

    def ended(self, run: Run, outcome: Outcome, duration_s: float) -> None:
        """The run has ended."""
        asked = sum(step.kind == "llm" for step in run.steps)
        duration_ms = round(duration_s * 1e3)
        self.outside.publish(
            AgentUsageEvent(
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
                duration_ms=duration_ms,
            )
        )
        if outcome in {"failed", "undelivered", "indeterminate"}:
            self._notify(AgentError, run, status=outcome, error_type=run.error or outcome)
        self._notify(RunEnded, run, attempt=run.attempt, status=outcome, duration_ms=duration_ms)
        self.events.emit(
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
            duration_ms=duration_ms,
        )

    def _notify(
        self, kind: type[AgentNotice], run: Run, suffix: str = "", **fields: str | int
    ) -> None:
        """Publishes a notice; its `event_id` is the same when it is published twice."""
        notice = {
            "event_id": f"{run.id}-{kind.subject}{suffix}",
            "ts": datetime.now(UTC),
            "run_id": run.id,
            "agent_id": run.agent_id,
            "microdao_id": run.microdao_id,
            "channel_id": run.channel_id,
            "entrypoint": run.invocation.entrypoint,
        }
        self.outside.publish(kind.model_validate(notice | fields))
