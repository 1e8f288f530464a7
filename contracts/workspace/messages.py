"""Messages of the workspace's channels: wire shapes and the ports of their store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Protocol
from uuid import UUID

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    computed_field,
)

from contracts.errors import OverLimit
from contracts.identity import Identifier
from contracts.shapes import Frozen, Strict
from contracts.values import not_blank, storable
from contracts.workspace.messaging_service import MAX_MESSAGE_CHARS, MAX_RECENT, SenderType

MAX_PREVIEW_CHARS = 500


MessageText = Annotated[
    str,
    StringConstraints(max_length=MAX_MESSAGE_CHARS),
    AfterValidator(storable),
    AfterValidator(not_blank),
]


class NewMessage(Strict):
    """Body of `POST /channels/{id}/messages`. A message that is sent twice under the client's own
    `message_id` is stored once.
    """

    sender_id: Identifier
    text: MessageText
    message_id: Identifier | None = None


class AgentPost(Frozen):
    """Body or query of `POST /agents/{agent_id}/post-to-channel`. A `run_id` posts one message."""

    channel_id: Identifier
    text: MessageText
    run_id: Identifier | None = None


class Message(Frozen):
    """One message. `run_id` names the agent's run that posted it."""

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
        """The beginning of the body, under the name that DAARION's clients read."""
        return self.body[:MAX_PREVIEW_CHARS]


class MessageQuery(Strict):
    """Query of `GET /channels/{id}/messages`. `before` is the id of the caller's oldest message."""

    microdao_id: Identifier | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_RECENT)] = 50
    before: UUID | None = None


@dataclass(frozen=True, slots=True)
class Post:
    """A message to store, once per `key` of its sender in the channel. With `lenient` the same key
    with another text is no Conflict. `caller` are the claims of who posts: its agents answer for
    that principal.
    """

    channel_id: UUID
    sender_id: str
    text: str
    key: str | None = None
    lenient: bool = False
    run_id: str | None = None
    caller: Mapping[str, Any] | None = None


class MessageStore(Protocol):
    """Stores messages. Raises DatabaseUnavailable while the database is away."""

    async def post(
        self, microdao_id: str, post: Post, refusal: OverLimit | None = None
    ) -> tuple[Message, bool]:
        """Stores a message, and an invocation for each agent of the channel when a person sent it.

        Returns the message and whether it is new.

        Raises:
            NotFound: no such channel.
            Forbidden: the sender is not a member.
            Conflict: the key belongs to another message.
            OverLimit: the `refusal`, unless the message is known.
        """

    async def messages(
        self, microdao_id: str, channel_id: UUID, limit: int, before: UUID | None
    ) -> list[Message]:
        """Returns messages, newest first. Raises InvalidRequest when `before` is not in the
        channel.
        """


class MessageNotices(Protocol):
    """Announces new messages to neighbours, without their contents."""

    def created(self, microdao_id: str, message: Message) -> None:
        """Queues one notice. Never blocks and never raises."""
