"""What an agent needs from a messaging service, whichever one it is: the port `Messaging` and the shapes it speaks.

The local workspace and the neighbours' messaging-service both stand behind it; `contracts/workspace/channels.py` has the shapes of
the workspace alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Protocol

from pydantic import AliasChoices, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from contracts.deadline import Deadline
from contracts.identity import Identifier

AGENT_PREFIX = "agent:"
MAX_MESSAGE_CHARS = 32_000
MAX_RECENT = 200

SenderType = Literal["human", "agent"]
StepKind = Literal[
    "context", "memory", "llm", "tool_call", "tool_result", "reply", "stored", "failed"
]

Count = Annotated[int, Field(ge=-(2**53), le=2**53)]
Measure = Annotated[float, Field(allow_inf_nan=False)]

_LENIENT = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


def sender_type(sender_id: str) -> SenderType:
    """Returns what an id says about its bearer: agents are `agent:…`, everybody else is human."""
    return "agent" if sender_id.startswith(AGENT_PREFIX) else "human"


def _with_zone(value: Any) -> Any:
    """A neighbour may leave the zone out; its clock is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


class ChannelMessage(BaseModel):
    """One message of a channel as any messaging service shows it.

    `text` is the whole body, or what the service shows of it. A service may know no ids; `matrix_event_id` is the same message's
    name in Matrix, where the service shows it. `run_id` is set on what a run of an agent posted, where the service keeps that.
    """

    model_config = _LENIENT

    id: str | None = Field(default=None, validation_alias=AliasChoices("id", "message_id"))
    matrix_event_id: str | None = None
    sender_id: str
    sender_type: SenderType
    text: str = Field(
        validation_alias=AliasChoices("text", "body", "content_preview", "body_preview")
    )
    created_at: Annotated[AwareDatetime, BeforeValidator(_with_zone)]
    run_id: str | None = None


class PostedMessage(BaseModel):
    """What a post came to. `repeated`: this run had posted before, and the message is the first one."""

    model_config = _LENIENT

    channel_id: str
    id: str | None = Field(default=None, validation_alias=AliasChoices("id", "message_id"))
    created_at: Annotated[AwareDatetime | None, BeforeValidator(_with_zone)] = None
    repeated: bool = False


class ChannelInfo(BaseModel):
    """A channel, its tenant and who is in it; None for members that the service does not tell."""

    model_config = _LENIENT

    id: str
    name: str
    microdao_id: Identifier
    members: list[str] | None = []


class RunStep(BaseModel):
    """One step of a run, for whoever watches the channel: names and numbers, never contents.

    `index` numbers the steps of a run from 0; a step sent twice is shown once. `detail` holds what the kind needs:
    a tool's id, whether it went well, tokens, milliseconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: Annotated[int, Field(ge=0, le=1_000)]
    kind: StepKind
    detail: dict[Identifier, Identifier | bool | Count | Measure | None] = Field(
        default={}, max_length=16
    )


class Messaging(Protocol):
    """A messaging service, as agents use it.

    Raises, everywhere: Unavailable (away or refusing for now), NotFound (no such channel), Forbidden (the agent is no
    member), DeadlineExceeded, UpstreamInvalidResponse (an answer that is none), InvalidRequest (refused as wrong).
    """

    keeps_run_ids: bool
    """Whether one run posts at most one message however often it tries. Without it, look before posting again."""

    async def recent_messages(
        self, channel_id: str, limit: int, deadline: Deadline, before: ChannelMessage | None = None
    ) -> list[ChannelMessage]:
        """Returns the newest `limit` (1 to 200) messages, oldest first, sorted by `created_at` whatever the service's order.

        Only what came before the message `before` is wanted. A service that cannot do that may return the newest.
        """

    async def post_as_agent(
        self, agent_id: str, channel_id: str, text: str, run_id: str, deadline: Deadline
    ) -> PostedMessage:
        """Posts a message of at most `MAX_MESSAGE_CHARS` characters.

        Raises Unreachable, RateLimited or Overloaded when the message was surely not taken; after another failure that is no
        refusal for good it may be there.
        """

    async def channel(self, channel_id: str, deadline: Deadline) -> ChannelInfo | None:
        """Returns name, tenant and members; None from a service that does not tell the tenant."""

    async def run_steps(
        self,
        agent_id: str,
        channel_id: str,
        run_id: str,
        steps: Sequence[RunStep],
        deadline: Deadline,
    ) -> None:
        """Shows steps to whoever watches the channel. Does nothing with a service that has no such route."""

    async def close(self) -> None:
        """Closes the connections."""
