"""What neighbours are told of runs over NATS: who, where and how it went, never what was said.

Each notice is published once on the subject of its class, unless a replica dies: then it is lost, or
told again with the same `event_id`. DAARION's agents-service reads `agent_id`, `channel_id`, `ts` and
`error_type` of `agent.reply.sent` and `agent.error`.
"""

from __future__ import annotations

from typing import ClassVar, Protocol
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict

from contracts.agents.api import Entrypoint, Outcome


class AgentNotice(BaseModel):
    """What every notice holds. `channel_id` is null for a run outside of channels."""

    model_config = ConfigDict(frozen=True)

    subject: ClassVar[str]

    event_id: str
    ts: AwareDatetime
    run_id: UUID
    agent_id: str
    microdao_id: str
    channel_id: str | None
    entrypoint: Entrypoint


class RunStarted(AgentNotice):
    """A replica begins to work on a run, or takes it over; `attempt` counts from 1."""

    subject = "agent.run.started"

    attempt: int


class ReplySent(AgentNotice):
    """The reply is in its channel; of a run that `failed` it is the apology."""

    subject = "agent.reply.sent"

    status: Outcome


class RunEnded(AgentNotice):
    """A run has ended; `duration_ms` is its last attempt's."""

    subject = "agent.run.ended"

    attempt: int
    status: Outcome
    duration_ms: int


class AgentError(AgentNotice):
    """A run has ended without its answer; `error_type` is the `error` of `GET /runs/{id}`."""

    subject = "agent.error"

    status: Outcome
    error_type: str


class AgentNotices(Protocol):
    """Where notices go."""

    def publish(self, notice: AgentNotice) -> None:
        """Queues one notice. Never blocks and never raises."""
