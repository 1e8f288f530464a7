"""Whose channel it is, and whether the agent is in it: asked before anything is done for an invocation."""

from __future__ import annotations

import time
from collections import OrderedDict

from contracts.agents import AgentInvocation
from contracts.deadline import Deadline
from contracts.errors import Forbidden, InvalidRequest
from contracts.messaging import ChannelInfo, Messaging

KEEP_S = 30.0
MAX_KEPT = 2_000


class Channels:
    """Resolves the microDAO of an invocation. What the messaging-service says wins over what the caller says."""

    def __init__(self, messaging: Messaging) -> None:
        self._messaging = messaging
        self._kept: OrderedDict[str, tuple[float, ChannelInfo]] = OrderedDict()

    async def microdao_of(self, invocation: AgentInvocation, deadline: Deadline) -> str:
        """Returns the tenant that the run belongs to.

        Raises:
            NotFound: no such channel.
            Forbidden: the channel is another microDAO's, or the agent is not in it.
            InvalidRequest: nobody says which microDAO it is.
            Unavailable: the messaging-service is away.
        """
        payload = invocation.payload
        info = await self._channel(payload.channel_id, invocation.agent_id, deadline) if payload.channel_id is not None else None
        if info is None:
            if payload.microdao_id is None:
                raise InvalidRequest("payload.microdao_id: required where the messaging-service does not tell the channel's")
            return payload.microdao_id
        if payload.microdao_id is not None and payload.microdao_id != info.microdao_id:
            raise Forbidden("payload.microdao_id: the channel belongs to another microDAO")
        if invocation.agent_id not in info.members:
            raise Forbidden("the agent is no member of this channel: add it first")
        return info.microdao_id

    async def _channel(self, channel_id: str, agent_id: str, deadline: Deadline) -> ChannelInfo | None:
        kept = self._kept.get(channel_id)
        if kept is not None and kept[0] > time.monotonic() and agent_id in kept[1].members:
            return kept[1]
        info = await self._messaging.channel(channel_id, deadline)
        if info is not None:
            self._kept[channel_id] = (time.monotonic() + KEEP_S, info)
            self._kept.move_to_end(channel_id)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return info
