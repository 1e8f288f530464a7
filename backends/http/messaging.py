"""The Messaging port over HTTP: the local workspace, or the neighbours' messaging-service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from backends.http.client import Credentials, ServiceClient
from contracts.deadline import Deadline
from contracts.errors import Overloaded, UpstreamInvalidResponse
from contracts.workspace.messaging_service import (
    MAX_RECENT,
    ChannelInfo,
    ChannelMessage,
    Messaging,
    RunStep,
)

# Servers and proxies accept URLs of this length.
MAX_QUERY_TEXT_BYTES = 7_000
FORM_REFUSED = frozenset({415, 422})
NO_SUCH_ROUTE = frozenset({404, 405, 422, 501})
TRY_LATER = 503
CUT = "…"


class _MessagingClient(ServiceClient):
    """What both adapters read alike."""

    service = "the messaging service"

    async def _recent(
        self, path: str, limit: int, deadline: Deadline, before: str | None
    ) -> list[ChannelMessage]:
        limit = min(max(limit, 1), MAX_RECENT)
        params: dict[str, str | int] = {"limit": limit, **({"before": before} if before else {})}
        answer = await self._ask(path, deadline, method="GET", params=params)
        if not isinstance(answer.body, list):
            raise UpstreamInvalidResponse(f"{self.service} did not answer with a list of messages")
        read = [message for message in map(_message, answer.body) if message is not None]
        if answer.body and not read:
            raise UpstreamInvalidResponse(f"{self.service} sent no readable messages")
        return sorted(read, key=lambda message: message.created_at)[-limit:]


class WorkspaceMessaging(_MessagingClient):
    """The workspace behind the ingress. It knows runs, so a repeated post returns the first one."""

    deduplicates_by_run_id = True

    async def recent_messages(
        self, channel_id: str, limit: int, deadline: Deadline, before: ChannelMessage | None = None
    ) -> list[ChannelMessage]:
        """Returns the latest messages, oldest first. Raises DaarionError."""
        return await self._recent(
            f"{self._channel(channel_id)}/messages", limit, deadline, before.id if before else None
        )

    async def post_as_agent(
        self, agent_id: str, channel_id: str, text: str, run_id: str, deadline: Deadline
    ) -> None:
        """Posts a reply of the agent. Raises DaarionError."""
        path = f"/internal/messaging/agents/{quote(agent_id, safe='')}/post-to-channel"
        body = {"channel_id": channel_id, "text": text, "run_id": run_id}
        await self._ask(path, deadline, body=body)

    async def channel(self, channel_id: str, deadline: Deadline) -> ChannelInfo | None:
        """Returns the channel. Raises DaarionError."""
        answer = await self._ask(self._channel(channel_id), deadline, method="GET")
        return self._read(answer, ChannelInfo, "a channel")

    async def run_steps(
        self,
        agent_id: str,
        channel_id: str,
        run_id: str,
        steps: Sequence[RunStep],
        deadline: Deadline,
    ) -> None:
        """Shows the run's steps to the channel's members. Raises DaarionError."""
        body = {
            "agent_id": agent_id,
            "run_id": run_id,
            "steps": [step.model_dump() for step in steps],
        }
        await self._ask(f"{self._channel(channel_id)}/run-steps", deadline, body=body)

    @staticmethod
    def _channel(channel_id: str) -> str:
        return f"/internal/messaging/channels/{quote(channel_id, safe='')}"


class NeighbourMessaging(_MessagingClient):
    """The neighbours' messaging-service: other URLs, no runs or steps, perhaps posts by query
    parameters.

    The run's id is sent as Idempotency-Key, for a version of the service that reads it.
    """

    deduplicates_by_run_id = False

    def __init__(self, base_url: str, credentials: Credentials) -> None:
        super().__init__(base_url, credentials)
        self._by_query = False

    async def recent_messages(
        self, channel_id: str, limit: int, deadline: Deadline, before: ChannelMessage | None = None
    ) -> list[ChannelMessage]:
        """Returns the latest messages, oldest first. Raises DaarionError."""
        # Its pages start at a time, the workspace's at a message.
        since = before.created_at.isoformat() if before else None
        return await self._recent(f"{self._channel(channel_id)}/messages", limit, deadline, since)

    async def post_as_agent(
        self, agent_id: str, channel_id: str, text: str, run_id: str, deadline: Deadline
    ) -> None:
        """Posts a reply. A service that refuses JSON gets query parameters from then on, with long
        texts cut.
        """
        path = f"/internal/agents/{quote(agent_id, safe='')}/post-to-channel"
        fields = {"channel_id": channel_id, "text": text}
        headers = {"Idempotency-Key": quote(run_id, safe=":._-")}
        by_query = self._by_query
        if not by_query:
            answer = await self._request("POST", path, deadline, body=fields, headers=headers)
            by_query = answer.status in FORM_REFUSED
        if by_query:
            fields["text"] = _cut_to_url(text)
            answer = await self._request("POST", path, deadline, params=fields, headers=headers)
            self._by_query = self._by_query or answer.ok
        if answer.status == TRY_LATER:
            raise Overloaded(
                f"{self.service} is temporarily unavailable", retry_after_s=answer.retry_after_s
            )
        if not answer.ok:
            raise self._refusal(answer)

    async def channel(self, channel_id: str, deadline: Deadline) -> ChannelInfo | None:
        """Returns the channel, or None from a service without these routes."""
        found = await self._get(self._channel(channel_id), deadline)
        if not isinstance(found, dict):
            return None
        listed = await self._get(f"{self._channel(channel_id)}/members", deadline)
        members = None
        if isinstance(listed, list):
            ids = [row.get("member_id") for row in listed if isinstance(row, dict)]
            members = [found_id for found_id in ids if isinstance(found_id, str)]
        try:
            return ChannelInfo.model_validate(
                {"id": channel_id, "name": channel_id, **found, "members": members}
            )
        except ValidationError:
            return None

    async def _get(self, path: str, deadline: Deadline) -> Any:
        """Returns what a route answers, or None if there is no such route."""
        answer = await self._request("GET", path, deadline)
        if not answer.ok and answer.status not in NO_SUCH_ROUTE:
            raise self._refusal(answer)
        return answer.body if answer.ok else None

    @staticmethod
    def _channel(channel_id: str) -> str:
        return f"/api/messaging/channels/{quote(channel_id, safe='')}"

    async def run_steps(
        self,
        agent_id: str,
        channel_id: str,
        run_id: str,
        steps: Sequence[RunStep],
        deadline: Deadline,
    ) -> None:
        """Does nothing: the service has no such route."""


def open_messaging(kind: str, base_url: str, credentials: Credentials) -> Messaging:
    """Returns the client for `workspace` or `messaging_service`."""
    return (
        WorkspaceMessaging(base_url, credentials)
        if kind == "workspace"
        else NeighbourMessaging(base_url, credentials)
    )


def _cut_to_url(text: str) -> str:
    """Returns as much of a text as fits a URL, with a mark if it is cut."""
    if len(quote(text, safe="")) <= MAX_QUERY_TEXT_BYTES:
        return text
    remaining = MAX_QUERY_TEXT_BYTES - len(quote(CUT))
    kept = []
    for character in text:
        remaining -= len(quote(character, safe=""))
        if remaining < 0:
            break
        kept.append(character)
    return "".join(kept) + CUT


def _message(given: Any) -> ChannelMessage | None:
    """Returns None for a message without text or sender, such as a picture or a deleted one."""
    try:
        return ChannelMessage.model_validate(given)
    except ValidationError:
        return None
