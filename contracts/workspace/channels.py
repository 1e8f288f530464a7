"""Wire shapes and ports of the workspace's channels: messages, members, live events, and the invocations they lead to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    computed_field,
    model_validator,
)

from contracts.deadline import Deadline
from contracts.identity import Cursor, Identifier, Page
from contracts.values import storable
from contracts.workspace.messaging import (
    MAX_MESSAGE_CHARS,
    MAX_RECENT,
    RunStep,
    SenderType,
    sender_type,
)
from contracts.workspace.projects import Limit, Name

MAX_MEMBERS = 200
MAX_AGENTS = 20
MAX_PREVIEW_CHARS = 500
MAX_STEPS = 50

EventKind = Literal["message.created", "run.step", "invocation.failed"]
InvocationState = Literal["pending", "delivered", "failed"]

_STRICT = ConfigDict(extra="forbid", frozen=True)
_STORED = ConfigDict(extra="ignore", frozen=True)


def _not_blank(value: str) -> str:
    if not value.strip():
        msg = "must not be blank"
        raise ValueError(msg)
    return value


def _unique(values: list[str]) -> list[str]:
    distinct = list(dict.fromkeys(values))
    if sum(sender_type(member) == "agent" for member in distinct) > MAX_AGENTS:
        msg = f"a channel has at most {MAX_AGENTS} agents"
        raise ValueError(msg)
    return distinct


MessageText = Annotated[
    str,
    StringConstraints(max_length=MAX_MESSAGE_CHARS),
    AfterValidator(storable),
    AfterValidator(_not_blank),
]


class NewChannel(BaseModel):
    """Body of `POST /channels`. Members are `user:…` and `agent:…`."""

    model_config = _STRICT

    name: Name
    microdao_id: Identifier
    members: Annotated[
        list[Identifier], Field(max_length=MAX_MEMBERS), AfterValidator(_unique)
    ] = []


class Channel(BaseModel):
    """One channel. `members` are in the order in which they came."""

    model_config = _STORED

    id: UUID
    microdao_id: str
    name: str
    members: list[str]
    created_at: datetime


class ChannelQuery(BaseModel):
    """Query of `GET /channels`: newest first, one page. Without a microDAO it asks for those of all, which takes the admin secret."""

    model_config = _STRICT

    microdao_id: Identifier | None = None
    member_id: Identifier | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class NewMember(BaseModel):
    """Body of `POST /channels/{id}/members`."""

    model_config = _STRICT

    member_id: Identifier


class NewMessage(BaseModel):
    """Body of `POST /channels/{id}/messages`. `message_id` is the client's own: sent twice, it is stored once."""

    model_config = _STRICT

    sender_id: Identifier
    text: MessageText
    message_id: Identifier | None = None


class AgentPost(BaseModel):
    """Body, or query, of `POST /agents/{agent_id}/post-to-channel`. One `run_id` posts one message."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    channel_id: Identifier
    text: MessageText
    run_id: Identifier | None = None


class Message(BaseModel):
    """One message. `run_id` names the agent's run that posted it."""

    model_config = _STORED

    id: UUID
    channel_id: UUID
    sender_id: str
    sender_type: SenderType
    body: str
    run_id: str | None = None
    created_at: datetime

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own order of decorators
    @property
    def content_preview(self) -> str:
        """The beginning of the body, under the name that some clients read."""
        return self.body[:MAX_PREVIEW_CHARS]


class MessageQuery(BaseModel):
    """Query of `GET /channels/{id}/messages`. `before` is the id of the oldest message that the caller has."""

    model_config = _STRICT

    microdao_id: Identifier | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_RECENT)] = 50
    before: UUID | None = None


class EventQuery(BaseModel):
    """Query of `GET /channels/{id}/events`. `after` is the id of the last event seen, as the header `Last-Event-ID` is."""

    model_config = _STRICT

    microdao_id: Identifier | None = None
    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class RunSteps(BaseModel):
    """Body of `POST /channels/{id}/run-steps`."""

    model_config = _STRICT

    agent_id: Identifier
    run_id: Identifier
    steps: Annotated[list[RunStep], Field(min_length=1, max_length=MAX_STEPS)]

    @model_validator(mode="after")
    def _distinct(self) -> RunSteps:
        if len({step.index for step in self.steps}) < len(self.steps):
            msg = "two steps have the same index"
            raise ValueError(msg)
        return self


class InvocationQuery(BaseModel):
    """Query of `GET /channels/{id}/invocations`: newest first."""

    model_config = _STRICT

    microdao_id: Identifier | None = None
    state: InvocationState | None = None
    limit: Limit = 50


class Invocation(BaseModel):
    """One agent that a message has to reach. `reason` tells why the last attempt failed."""

    model_config = _STORED

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
class Post:
    """A message to store. `key` makes it once per sender and channel; `lenient` keys accept another text the second time."""

    channel_id: UUID
    sender_id: str
    text: str
    key: str | None = None
    lenient: bool = False
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """One live event. `position` counts a channel's events and messages from 1, without gaps."""

    position: int
    kind: EventKind
    payload: Mapping[str, Any]


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


class ChannelStore(Protocol):
    """Where channels are kept. Raises DatabaseUnavailable when it is away."""

    async def tenant(self, channel_id: UUID) -> str | None:
        """Returns the microDAO of a channel, None when there is no such channel."""

    async def create(self, channel: NewChannel) -> Channel:
        """Stores a new channel."""

    async def find(self, microdao_id: str, channel_id: UUID) -> Channel:
        """Returns a channel. Raises NotFound."""

    async def page(self, query: ChannelQuery) -> Page[Channel]:
        """Returns one page, newest first. Raises InvalidRequest for a foreign cursor."""

    async def add_member(self, microdao_id: str, channel_id: UUID, member_id: str) -> bool:
        """Returns whether the member is new. Raises NotFound, or Conflict when the channel is full."""

    async def remove_member(self, microdao_id: str, channel_id: UUID, member_id: str) -> bool:
        """Returns whether there was such a member; what waits for an agent that leaves is given up. Raises NotFound."""

    async def post(self, microdao_id: str, post: Post) -> tuple[Message, bool]:
        """Stores a message, and with a human one an invocation for each agent of the channel; the flag tells whether it is new.

        Raises:
            NotFound: no such channel.
            Forbidden: the sender is no member.
            Conflict: the key made another message before.
        """

    async def messages(
        self, microdao_id: str, channel_id: UUID, limit: int, before: UUID | None
    ) -> list[Message]:
        """Returns messages, newest first. Raises InvalidRequest when `before` is none of the channel's."""

    async def add_steps(self, microdao_id: str, channel_id: UUID, steps: RunSteps) -> int:
        """Stores the steps that are new and returns their number. Raises NotFound or Forbidden."""

    async def positions(self, channel_ids: Collection[UUID]) -> dict[UUID, int]:
        """Returns how many events each channel has."""

    async def events(
        self, microdao_id: str, channel_id: UUID, after: int, limit: int
    ) -> list[ChannelEvent]:
        """Returns events after a position, oldest first. Old steps may be gone; messages never are."""

    async def invocations(
        self, microdao_id: str, channel_id: UUID, query: InvocationQuery
    ) -> list[Invocation]:
        """Returns what the channel's messages led to, newest first."""


class Outbox(Protocol):
    """The invocations that wait. Raises DatabaseUnavailable when it is away."""

    async def claim(self, at_most: int, lease_s: float) -> Sequence[ClaimedInvocation]:
        """Returns invocations that are due; nobody else gets them for `lease_s`."""

    async def delivered(self, claimed: ClaimedInvocation) -> None:
        """The agent runtime has accepted it."""

    async def again(self, claimed: ClaimedInvocation, reason: str, delay_s: float) -> None:
        """It is attempted again after `delay_s`."""

    async def failed(self, claimed: ClaimedInvocation, reason: str) -> None:
        """It is given up; an event in the channel tells so."""

    async def purge(self) -> int:
        """Removes settled invocations and steps that are older than their retention; returns how many rows."""


class AgentInvoker(Protocol):
    """The way to the agent runtime."""

    async def invoke(self, claimed: ClaimedInvocation, deadline: Deadline) -> None:
        """Hands an invocation over. Raises leaves of the error tree; `retryable` tells whether another attempt makes sense."""


class MessageNotices(Protocol):
    """Tells the world outside that a message is there, without its contents."""

    def created(self, microdao_id: str, message: Message) -> None:
        """Never blocks and never raises."""
