"""Who calls, on routes whose clients know nothing of agents and microDAOs."""

from __future__ import annotations

from starlette.requests import Request

from contracts.llm import CallMetadata

UNNAMED = "unnamed"


def caller_of(request: Request, metadata: CallMetadata | None) -> CallMetadata:
    """Returns the body's `metadata`, else what the headers `X-Agent-Id`, `X-Microdao-Id` and `X-Channel-Id` say.

    Clients of OpenAI send neither: they are `agent:unnamed` of `microdao:unnamed`, and share that one's limits.

    Raises:
        ValidationError: an id that is too long or holds control characters.
    """
    if metadata is not None:
        return metadata
    headers = request.headers
    return CallMetadata(
        agent_id=headers.get("x-agent-id") or f"agent:{UNNAMED}",
        microdao_id=headers.get("x-microdao-id") or f"microdao:{UNNAMED}",
        channel_id=headers.get("x-channel-id") or None,
    )
