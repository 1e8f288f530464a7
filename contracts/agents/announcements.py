"""What neighbours learn of runs: notices, and usage for the usage engine; never message contents.

Each notice is published once on the subject of its class. When a replica dies, a notice may be lost
or repeated with the same `event_id`. DAARION's agents-service reads `agent_id`, `channel_id`, `ts`
and `error_type` of `agent.reply.sent` and `agent.error`.
"""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from pydantic import AwareDatetime

from contracts.agents.invocations import Entrypoint
from contracts.agents.runs import Outcome
from contracts.shapes import Frozen

TRIGGERS: dict[Entrypoint, str] = {
    "channel_message": "message",
    "direct": "manual",
    "cron": "scheduled",
}
"""The usage engine's words for entrypoints."""


class AgentEvent(Frozen):
    """What every event about a run says. `channel_id` is null for a run without a channel."""

    subject: ClassVar[str]

    agent_id: str
    microdao_id: str
    channel_id: str | None
    entrypoint: Entrypoint

    def message(self) -> dict[str, Any]:
        """Returns the message."""
        return self.model_dump(mode="json")


class AgentNotice(AgentEvent):
    """Fields of every notice."""

    event_id: str
    ts: AwareDatetime
    run_id: UUID


class RunStarted(AgentNotice):
    """A replica begins to work on a run, or takes it over; `attempt` counts from 1."""

    subject = "agent.run.started"

    attempt: int


class ReplySent(AgentNotice):
    """The reply, or the apology of a `failed` run, is in its channel."""

    subject = "agent.reply.sent"

    status: Outcome


class RunEnded(AgentNotice):
    """A run has ended; `duration_ms` is that of its last attempt."""

    subject = "agent.run.ended"

    attempt: int
    status: Outcome
    duration_ms: int


class AgentError(AgentNotice):
    """A run has ended without an answer; `error_type` is the `error` of `GET /runs/{id}`."""

    subject = "agent.error"

    status: Outcome
    error_type: str


class AgentUsageEvent(AgentEvent):
    """Published as `usage.agent` when a run ends; `id` is the run's, so that consumers can
    recognise repeats.
    """

    subject = "usage.agent"

    id: UUID
    occurred_at: AwareDatetime
    outcome: Outcome
    error: str | None
    model: str | None
    steps: int
    tool_calls: int
    prompt_tokens: int
    completion_tokens: int
    duration_ms: int

    def message(self) -> dict[str, Any]:
        """Returns the message: the fields that DAARION's usage engine requires, and our own."""
        success = self.outcome in {"answered", "ignored"}
        return super().message() | {
            "event_id": str(self.id),
            "timestamp": self.occurred_at.isoformat(),
            "trigger": TRIGGERS[self.entrypoint],
            "llm_calls": self.steps,
            "success": success,
            "error": None if success else self.error or self.outcome,
        }
