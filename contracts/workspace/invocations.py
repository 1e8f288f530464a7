"""Invocations: the agents that a message has to reach, and the outbox they wait in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol
from uuid import UUID

from contracts.deadline import Deadline
from contracts.identity import Identifier
from contracts.shapes import Frozen, Strict
from contracts.workspace.fields import Limit

InvocationState = Literal["pending", "delivered", "failed"]


class InvocationQuery(Strict):
    """Query of `GET /channels/{id}/invocations`: newest first."""

    microdao_id: Identifier | None = None
    state: InvocationState | None = None
    limit: Limit = 50


class Invocation(Frozen):
    """One agent that a message has to reach. `reason` says why the last attempt failed."""

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
class LeasedInvocation:
    """An invocation that this process has leased. `age_s` is the time since its message; `caller`
    are the claims of who posted it, None for the graph itself; `traceparent` is the trace that it
    was posted in.
    """

    id: UUID
    microdao_id: str
    channel_id: UUID
    message_id: UUID
    agent_id: str
    attempts: int
    age_s: float
    caller: Mapping[str, Any] | None = None
    traceparent: str | None = None


class Outbox(Protocol):
    """Stores invocations until they are delivered. Raises DatabaseUnavailable."""

    async def lease(self, at_most: int, lease_s: float) -> Sequence[LeasedInvocation]:
        """Leases up to `at_most` due invocations to this process for `lease_s`."""

    async def delivered(self, leased: LeasedInvocation) -> None:
        """Marks the invocation as delivered."""

    async def release(self, leased: LeasedInvocation, reason: str, delay_s: float) -> None:
        """Releases the invocation; it is due again after `delay_s`."""

    async def failed(self, leased: LeasedInvocation, reason: str) -> None:
        """Gives the invocation up and adds an event to its channel."""

    async def purge(self, event_days: float, message_days: float | None) -> int:
        """Removes settled invocations and steps, and messages of that age; None keeps these.

        Returns the number of rows.
        """

    async def invocations(
        self, microdao_id: str, channel_id: UUID, query: InvocationQuery
    ) -> list[Invocation]:
        """Returns the invocations of a channel, newest first."""


class AgentInvoker(Protocol):
    """Calls the agent runtime."""

    async def invoke(self, leased: LeasedInvocation, deadline: Deadline) -> None:
        """Delivers an invocation. Raises leaves of the error tree, `retryable` or not."""
