"""The port `Messaging`: what agents need of any messaging service, and its shapes.

Adapters exist for the workspace and for the neighbours' messaging-service. The workspace's own
shapes are beside this module in `channels`, `messages`, `events` and `invocations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Protocol

from pydantic import AliasChoices, AwareDatetime, BeforeValidator, Field

from contracts.deadline import Deadline
from contracts.identity import Identifier
from contracts.shapes import Frozen, Strict

AGENT_PREFIX = "agent:"
MAX_MESSAGE_CHARS = 32_000
MAX_RECENT = 200

SenderType = Literal["human", "agent"]
StepKind = Literal[
    "context", "memory", "llm", "tool_call", "tool_result", "reply", "stored", "failed"
]

Count = Annotated[int, Field(ge=-(2**53), le=2**53)]
Measure = Annotated[float, Field(allow_inf_nan=False)]


def sender_type(sender_id: str) -> SenderType:
    """Returns the type of a sender by its id: agents are `agent:…`, everybody else is human."""
    return "agent" if sender_id.startswith(AGENT_PREFIX) else "human"


def _with_zone(value: Any) -> Any:
    """Reads a time without a zone, which a neighbour may send, as UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


class ChannelMessage(Frozen, populate_by_name=True):
    """One message of a channel.

    `text` is the body, or the part of it that the service shows. `id` is None when the service
    knows no ids. `matrix_event_id` is the message's id in Matrix and `run_id` the run that posted
    it, where the service reports them.
    """

    id: str | None = Field(default=None, validation_alias=AliasChoices("id", "message_id"))
    matrix_event_id: str | None = None
    sender_id: str
    sender_type: SenderType
    text: str = Field(
        validation_alias=AliasChoices("text", "body", "content_preview", "body_preview")
    )
    created_at: Annotated[AwareDatetime, BeforeValidator(_with_zone)]
    run_id: str | None = None


class ChannelInfo(Frozen):
    """A channel, its tenant and members, None when the service does not report them."""

    id: Identifier
    name: str
    microdao_id: Identifier
    members: list[str] | None = Field(default=[])


class RunStep(Strict):
    """One step of a run for the watchers of its channel: names and numbers, never contents.

    `index` numbers the steps of a run from 0; a step that is sent twice is shown once. `detail`
    holds, by kind, a tool's id, success, tokens, milliseconds.
    """

    index: Annotated[int, Field(ge=0, le=1_000)]
    kind: StepKind
    detail: dict[Identifier, Identifier | bool | Count | Measure | None] = Field(
        default={}, max_length=16
    )


class Messaging(Protocol):
    """A messaging service.

    Every method raises Unavailable (away, or refusing for now), NotFound (no such channel),
    Forbidden (the agent is not a member), DeadlineExceeded, UpstreamInvalidResponse (an unreadable
    answer) and InvalidRequest (the service refused the request as wrong).
    """

    deduplicates_by_run_id: bool
    """Whether repeated posts of one run show one message. Otherwise search the channel before
    posting again.
    """

    async def recent_messages(
        self, channel_id: str, limit: int, deadline: Deadline, before: ChannelMessage | None = None
    ) -> list[ChannelMessage]:
        """Returns the newest `limit` (1 to 200) messages, sorted by `created_at`, oldest first.

        With `before`, returns the messages before that one; a service that cannot do so may return
        the newest.
        """

    async def post_as_agent(
        self, agent_id: str, channel_id: str, text: str, run_id: str, deadline: Deadline
    ) -> None:
        """Posts a message of at most `MAX_MESSAGE_CHARS` characters.

        Raises Unreachable, RateLimited or Overloaded when the message was certainly not taken.
        After NotFound, Forbidden or InvalidRequest it was refused; after other errors it may be
        there.
        """

    async def channel(self, channel_id: str, deadline: Deadline) -> ChannelInfo | None:
        """Returns name, tenant and members; None when the service does not report the tenant."""

    async def run_steps(
        self,
        agent_id: str,
        channel_id: str,
        run_id: str,
        steps: Sequence[RunStep],
        deadline: Deadline,
    ) -> None:
        """Shows steps to the channel's watchers, if the service has such a route."""

    async def close(self) -> None:
        """Closes the connections."""
