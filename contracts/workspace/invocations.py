"""Invocations: the agents that a message has to reach, and the outbox they wait in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from contracts.deadline import Deadline
from contracts.identity import Identifier
from contracts.workspace.fields import Limit

InvocationState = Literal["pending", "delivered", "failed"]


class InvocationQuery(BaseModel):
    """Query of `GET /channels/{id}/invocations`: newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    microdao_id: Identifier | None = None
    state: InvocationState | None = None
    limit: Limit = 50


class Invocation(BaseModel):
    """One agent that a message has to reach. `reason` tells why the last attempt failed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: UUID
    channel_id: UUID
    message_id: UUID
    agent_id: str
    state: InvocationState
    attempts: int
    reason: str | None = None
    created_at: datetime
    settled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ClaimedInvocation:
    """An invocation that this process may attempt now. `age_s` is the time since its message was stored."""

    id: UUID
    microdao_id: str
    channel_id: UUID
    message_id: UUID
    agent_id: str
    attempts: int
    age_s: float


class Outbox(Protocol):
    """The invocations that wait. Raises DatabaseUnavailable when it is away."""

    async def claim(self, at_most: int, lease_s: float) -> Sequence[ClaimedInvocation]:
        """Returns invocations that are due; nobody else gets them for `lease_s`."""

    async def delivered(self, claimed: ClaimedInvocation) -> None:
        """The agent runtime has accepted it."""

    async def retry_later(self, claimed: ClaimedInvocation, reason: str, delay_s: float) -> None:
        """It is attempted again after `delay_s`."""

    async def failed(self, claimed: ClaimedInvocation, reason: str) -> None:
        """It is given up; an event in the channel tells so."""

    async def purge(self) -> int:
        """Removes settled invocations and steps that are older than their retention; returns how many rows."""

    async def invocations(
        self, microdao_id: str, channel_id: UUID, query: InvocationQuery
    ) -> list[Invocation]:
        """Returns what the channel's messages led to, newest first."""


class AgentInvoker(Protocol):
    """The way to the agent runtime."""

    async def invoke(self, claimed: ClaimedInvocation, deadline: Deadline) -> None:
        """Hands an invocation over. Raises leaves of the error tree; `retryable` tells whether another attempt makes sense."""
