"""Live events of the workspace's channels: wire shapes and the port of their store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from pydantic import Field, model_validator

from contracts.identity import Identifier
from contracts.shapes import Strict
from contracts.workspace.messaging_service import RunStep

MAX_STEPS = 50

EventKind = Literal["message.created", "run.step", "invocation.failed"]


class EventQuery(Strict):
    """Query of `GET /channels/{id}/events`. `after` is the last event's id, like the header
    `Last-Event-ID`.
    """

    microdao_id: Identifier | None = None
    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class RunSteps(Strict):
    """Body of `POST /channels/{id}/run-steps`."""

    agent_id: Identifier
    run_id: Identifier
    steps: Annotated[list[RunStep], Field(min_length=1, max_length=MAX_STEPS)]

    @model_validator(mode="after")
    def _distinct(self) -> RunSteps:
        if len({step.index for step in self.steps}) < len(self.steps):
            raise ValueError("two steps have the same index")
        return self


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """One live event. `position` counts a channel's events and messages from 1 without gaps."""

    position: int
    kind: EventKind
    payload: Mapping[str, Any]


class ChannelEventStore(Protocol):
    """Stores live events. Raises DatabaseUnavailable while the database is away."""

    async def add_steps(self, microdao_id: str, channel_id: UUID, steps: RunSteps) -> int:
        """Stores new steps, returns their number. Raises NotFound, or Forbidden: no member."""

    async def positions(self, channel_ids: Collection[UUID]) -> dict[UUID, int]:
        """Returns the newest position of each channel."""

    async def events(
        self, microdao_id: str, channel_id: UUID, after: int, limit: int
    ) -> list[ChannelEvent]:
        """Returns events after a position, oldest first. Old steps are purged; messages, too, where
        that is configured.
        """
