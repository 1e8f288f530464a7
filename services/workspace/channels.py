"""The use cases of channels: finds a channel's microDAO, stores, and announces what is new."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from uuid import UUID

from cachetools import LRUCache

from contracts.access.principals import acting
from contracts.errors import InvalidRequest, NotFound
from contracts.identity import Page, as_uuid
from contracts.workspace.channels import Channel, ChannelQuery, ChannelStore, NewChannel, NewMember
from contracts.workspace.events import ChannelEvent, ChannelEventStore, EventQuery, RunSteps
from contracts.workspace.invocations import Invocation, InvocationQuery, Outbox
from contracts.workspace.messages import (
    AgentPost,
    Message,
    MessageNotices,
    MessageQuery,
    MessageStore,
    NewMessage,
    Post,
)
from contracts.workspace.messaging_service import AGENT_PREFIX, sender_type
from services.access.quotas import Quotas
from services.workspace.live import LiveFeeds

MAX_REMEMBERED = 10_000


@dataclass(frozen=True)
class Channels:
    """Creates and reads channels, and posts into them.

    `channel_id` is as the caller wrote it; a `microdao_id` that the caller names must be the
    channel's own. Every method raises NotFound for a missing channel and for another microDAO's,
    and DatabaseUnavailable. `wake` is called when invocations were put into the outbox.
    """

    channels: ChannelStore
    stored_messages: MessageStore
    events: ChannelEventStore
    outbox: Outbox
    feeds: LiveFeeds
    notices: MessageNotices
    wake: Callable[[], None]
    quotas: Quotas
    _tenants: LRUCache[UUID, str] = field(default_factory=lambda: LRUCache(MAX_REMEMBERED))

    async def create(self, channel: NewChannel) -> Channel:
        """Stores a new channel."""
        return await self.channels.create(channel)

    async def page(self, query: ChannelQuery) -> Page[Channel]:
        """Returns one page, newest first. Raises InvalidRequest for a foreign cursor."""
        return await self.channels.page(query)

    async def find(self, channel_id: str, microdao_id: str | None) -> Channel:
        """Returns a channel with its members."""
        return await self.channels.find(*await self._place(channel_id, microdao_id))

    async def add_member(
        self, channel_id: str, microdao_id: str | None, member: NewMember
    ) -> tuple[Channel, bool]:
        """Adds a member; returns the channel and whether the member is new.

        Raises Conflict when the channel is full.
        """
        place = await self._place(channel_id, microdao_id)
        added = await self.channels.add_member(*place, member.member_id)
        return await self.channels.find(*place), added

    async def remove_member(
        self, channel_id: str, microdao_id: str | None, member_id: str
    ) -> Channel:
        """Removes the member, if there is such a one; returns the channel."""
        place = await self._place(channel_id, microdao_id)
        await self.channels.remove_member(*place, member_id)
        return await self.channels.find(*place)

    async def post(
        self, channel_id: str, microdao_id: str | None, message: NewMessage, key: str | None
    ) -> tuple[Message, bool]:
        """Stores a message once per message id, else per `key`; the flag tells whether it is new.

        Raises:
            Forbidden: the sender is no member.
            Conflict: the id or key belongs to another message.
            OverLimit: a new message is over the microDAO's quota.
        """
        tenant, found = await self._place(channel_id, microdao_id)
        own = f"id:{message.message_id}" if message.message_id else f"key:{key}" if key else None
        return await self._stored(
            tenant,
            Post(found, message.sender_id, message.text, key=own, caller=acting().claims()),
        )

    async def post_as_agent(
        self, agent_id: str, post: AgentPost, microdao_id: str | None, key: str | None
    ) -> tuple[Message, bool]:
        """Stores an agent's message once per run, else per `key`; the flag tells whether it is new.

        Raises:
            InvalidRequest: `agent_id` is not an agent's.
            Forbidden, Conflict: as `post`; a run's second text is not compared with its first.
        """
        if sender_type(agent_id) != "agent":
            raise InvalidRequest(f"only agents post here: their ids begin with `{AGENT_PREFIX}`")
        tenant, found = await self._place(post.channel_id, microdao_id)
        own = f"run:{post.run_id}" if post.run_id else f"key:{key}" if key else None
        return await self._stored(
            tenant,
            Post(
                found,
                agent_id,
                post.text,
                key=own,
                lenient=post.run_id is not None,
                run_id=post.run_id,
            ),
        )

    async def messages(self, channel_id: str, query: MessageQuery) -> list[Message]:
        """Returns messages, newest first."""
        tenant, found = await self._place(channel_id, query.microdao_id)
        return await self.stored_messages.messages(tenant, found, query.limit, query.before)

    async def add_steps(self, channel_id: str, microdao_id: str | None, steps: RunSteps) -> int:
        """Shows steps of a run to the watchers; returns how many are new. Raises Forbidden."""
        tenant, found = await self._place(channel_id, microdao_id)
        added = await self.events.add_steps(tenant, found, steps)
        self.feeds.changed(found)
        return added

    async def watch(
        self, channel_id: str, query: EventQuery
    ) -> AbstractAsyncContextManager[AsyncIterator[ChannelEvent | None]]:
        """Returns the channel's live events, as `LiveFeeds.watch`."""
        tenant, found = await self._place(channel_id, query.microdao_id)
        return self.feeds.watch(tenant, found, query.after)

    async def invocations(self, channel_id: str, query: InvocationQuery) -> list[Invocation]:
        """Returns the invocations of the channel's messages, newest first."""
        tenant, found = await self._place(channel_id, query.microdao_id)
        return await self.outbox.invocations(tenant, found, query)

    async def _stored(self, tenant: str, post: Post) -> tuple[Message, bool]:
        refusal = await self.quotas.refusal("messages", tenant)
        message, created = await self.stored_messages.post(tenant, post, refusal)
        if created:
            self.quotas.added("messages", tenant)
            self.feeds.changed(message.channel_id)
            self.notices.created(tenant, message)
            if message.sender_type == "human":
                self.wake()
        return message, created

    async def _place(self, channel_id: str, microdao_id: str | None) -> tuple[str, UUID]:
        found = as_uuid(channel_id)
        tenant = await self._tenant(found) if found is not None else None
        if found is None or tenant is None or microdao_id not in {None, tenant}:
            raise NotFound("no such channel")
        return tenant, found

    async def _tenant(self, channel_id: UUID) -> str | None:
        """The channel's microDAO, which never changes and so is cached."""
        tenant = self._tenants.get(channel_id) or await self.channels.tenant(channel_id)
        if tenant is not None:
            self._tenants[channel_id] = tenant
        return tenant
