"""Checks for each invocation which microDAO its channel belongs to and who is a member."""

from __future__ import annotations

from collections.abc import Callable

from cachetools import TTLCache

from contracts.access.principals import OURSELVES, acting, acting_as
from contracts.agents.invocations import AgentInvocation
from contracts.deadline import Deadline
from contracts.errors import Forbidden, InvalidRequest, NotFound
from contracts.workspace.messaging_service import ChannelInfo, Messaging

CACHE_S = 30.0
MAX_CACHED = 2_000
UNKNOWN_TENANT = (
    "the messaging-service does not report this channel's microDAO: set `messaging.microdaos` or "
    "`messaging.microdao_id` in the agent runtime's arguments"
)


class ChannelTenants:
    """Resolves the microDAO of an invocation: as the messaging service reports, else as configured.

    `configured(channel_id)` returns the configured microDAO; `configured(None)` that of runs
    without a channel. A microDAO that the invocation names must be the same; it is trusted only
    without a channel.
    """

    def __init__(
        self, messaging: Messaging, configured: Callable[[str | None], str | None]
    ) -> None:
        self._messaging = messaging
        self._configured = configured
        self._cache = TTLCache[str, ChannelInfo, float](MAX_CACHED, CACHE_S)

    async def place(
        self, invocation: AgentInvocation, deadline: Deadline
    ) -> tuple[str, str | None]:
        """Returns the microDAO and the channel that the run belongs to.

        The channel's id is as the messaging service reports it, which may also find a channel by
        another spelling: erasures and duplicates are found by the id. Else it is as invoked.

        Raises:
            NotFound: no such channel in a microDAO that the caller may act in.
            Forbidden: the channel is another microDAO's or no known one's, or the agent is not a
                member.
            InvalidRequest: an invocation without a channel names no microDAO.
            Unavailable: the messaging service is away.
        """
        channel_id, named = invocation.payload.channel_id, invocation.payload.microdao_id
        if channel_id is None:
            tenant = self._configured(None) or named
            if tenant is None:
                raise InvalidRequest("payload.microdao_id: required without a channel")
            info = None
        else:
            info = await self._channel(channel_id, invocation.agent_id, deadline)
            tenant = self._configured(channel_id) if info is None else info.microdao_id
            if tenant is None:
                raise Forbidden(UNKNOWN_TENANT)
            if tenant not in acting().microdaos:
                raise NotFound("no such channel")
        if named not in {None, tenant}:
            raise Forbidden(
                "payload.microdao_id: the channel or this runtime is another microDAO's"
            )
        if (
            info is not None
            and info.members is not None
            and invocation.agent_id not in info.members
        ):
            raise Forbidden("the agent is not a member of this channel: add it first")
        return tenant, channel_id if info is None else info.id

    async def _channel(
        self, channel_id: str, agent_id: str, deadline: Deadline
    ) -> ChannelInfo | None:
        kept = self._cache.get(channel_id)
        if kept is not None and (kept.members is None or agent_id in kept.members):
            return kept
        with acting_as(OURSELVES):  # the caller may not know yet where the channel is
            info = await self._messaging.channel(channel_id, deadline)
        if info is not None:
            self._cache[channel_id] = info
        return info
