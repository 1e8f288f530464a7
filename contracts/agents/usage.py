"""Usage of agents: one event per ended run, for the usage engine."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol
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


class AgentUsageEvent(Frozen):
    """Published as `usage.agent` when a run ends; `id` is the run's, so that consumers can
    recognise repeats.
    """

    subject: ClassVar[str] = "usage.agent"

    id: UUID
    occurred_at: AwareDatetime
    agent_id: str
    microdao_id: str
    channel_id: str | None
    entrypoint: Entrypoint
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
        return self.model_dump(mode="json") | {
            "event_id": str(self.id),
            "timestamp": self.occurred_at.isoformat(),
            "trigger": TRIGGERS[self.entrypoint],
            "llm_calls": self.steps,
            "success": success,
            "error": None if success else self.error or self.outcome,
        }


class AgentUsage(Protocol):
    """Announces ended runs."""

    def publish(self, event: AgentUsageEvent) -> None:
        """Queues one event. Never blocks and never raises."""
