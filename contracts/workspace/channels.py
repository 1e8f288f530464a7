"""Channels and their members: wire shapes and the port of their store."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Protocol
from uuid import UUID

from pydantic import AfterValidator, Field

from contracts.identity import Identifier, Page, PageQuery
from contracts.shapes import Frozen, Strict
from contracts.workspace.fields import Name
from contracts.workspace.messaging_service import sender_type

MAX_MEMBERS = 200
MAX_AGENTS = 20


def _unique(values: list[str]) -> list[str]:
    distinct = list(dict.fromkeys(values))
    if sum(sender_type(member) == "agent" for member in distinct) > MAX_AGENTS:
        raise ValueError(f"a channel has at most {MAX_AGENTS} agents")
    return distinct


class NewChannel(Strict):
    """Body of `POST /channels`. Members are `user:…` and `agent:…`."""

    name: Name
    microdao_id: Identifier
    members: Annotated[list[Identifier], Field(max_length=MAX_MEMBERS), AfterValidator(_unique)] = (
        Field(default=[])
    )


class Channel(Frozen):
    """One channel. `members` are in the order in which they joined."""

    id: UUID
    microdao_id: str
    name: str
    members: list[str]
    created_at: datetime


class ChannelQuery(PageQuery):
    """Query of `GET /channels`: newest first, one page. Without a microDAO it lists the channels of
    all, which needs the admin secret.
    """

    microdao_id: Identifier | None = None
    member_id: Identifier | None = None


class NewMember(Strict):
    """Body of `POST /channels/{id}/members`."""

    member_id: Identifier


class ChannelStore(Protocol):
    """Stores channels. Raises DatabaseUnavailable while the database is away."""

    async def tenant(self, channel_id: UUID) -> str | None:
        """Returns the microDAO of a channel, None when there is no such channel."""

    async def create(self, channel: NewChannel) -> Channel:
        """Stores a new channel."""

    async def find(self, microdao_id: str, channel_id: UUID) -> Channel:
        """Returns a channel. Raises NotFound."""

    async def page(self, query: ChannelQuery) -> Page[Channel]:
        """Returns one page, newest first. Raises InvalidRequest for a foreign cursor."""

    async def add_member(self, microdao_id: str, channel_id: UUID, member_id: str) -> bool:
        """Adds a member; returns whether it is new. Raises NotFound, or Conflict when full."""

    async def remove_member(self, microdao_id: str, channel_id: UUID, member_id: str) -> bool:
        """Removes a member and gives up its pending invocations; returns whether it was a member.

        Raises NotFound.
        """
