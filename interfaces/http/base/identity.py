"""Who calls, on routes whose clients know nothing of agents and microDAOs, or name the tenant outside a body."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from contracts.errors import InvalidRequest
from contracts.identity import Identifier
from contracts.llm.requests import CallMetadata

UNNAMED = "unnamed"


class Named(Protocol):
    """What a body may say of its caller; None where it is silent."""

    @property
    def agent_id(self) -> str | None: ...
    @property
    def microdao_id(self) -> str | None: ...
    @property
    def channel_id(self) -> str | None: ...


class _Tenant(BaseModel):
    model_config = ConfigDict(frozen=True)

    microdao_id: Identifier


def caller_of(request: Request, metadata: Named | None) -> CallMetadata:
    """Returns what the body's `metadata` says, completed by the headers `X-Agent-Id`, `X-Microdao-Id` and `X-Channel-Id`.

    Clients of OpenAI send neither: they are `agent:unnamed` of `microdao:unnamed`, and share that one's limits.

    Raises:
        ValidationError: an id that is too long or holds control characters.
    """
    if isinstance(metadata, CallMetadata):
        return metadata
    headers = request.headers
    return CallMetadata(
        agent_id=(metadata and metadata.agent_id)
        or headers.get("x-agent-id")
        or f"agent:{UNNAMED}",
        microdao_id=(metadata and metadata.microdao_id)
        or headers.get("x-microdao-id")
        or f"microdao:{UNNAMED}",
        channel_id=(metadata and metadata.channel_id) or headers.get("x-channel-id") or None,
    )


def microdao_of(request: Request) -> str:
    """Returns the tenant that the query string's `microdao_id` or the header `X-Microdao-Id` names.

    Raises:
        InvalidRequest: neither is there, or they name two different ones.
        ValidationError: an id that is too long or holds control characters.
    """
    found = {
        value
        for value in (request.query_params.get("microdao_id"), request.headers.get("x-microdao-id"))
        if value
    }
    if not found:
        raise InvalidRequest("name the tenant: `?microdao_id=` or the header `X-Microdao-Id`")
    if len(found) > 1:
        raise InvalidRequest(
            "the query string and the header X-Microdao-Id name different microDAOs"
        )
    return _Tenant(microdao_id=found.pop()).microdao_id
