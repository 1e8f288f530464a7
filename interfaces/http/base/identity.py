"""The caller's identity outside the body: in headers and in the query."""

from __future__ import annotations

from starlette.datastructures import QueryParams
from starlette.requests import Request

from contracts.access.principals import Principal
from contracts.errors import Forbidden, InvalidRequest
from contracts.identity import Identifier
from contracts.llm.openai_chat import Identity
from contracts.llm.requests import CallMetadata
from contracts.shapes import Strict
from interfaces.http.base.bodies import JsonRequest

UNNAMED = "unnamed"
MICRODAO_HEADER = "x-microdao-id"


def call_metadata_of(request: Request, metadata: Identity | CallMetadata | None) -> CallMetadata:
    """Returns the body's `metadata`, completed by `X-Agent-Id`, `X-Microdao-Id` and `X-Channel-Id`,
    then by the only agent and microDAO that the caller has.

    Clients of OpenAI that send neither are else `agent:unnamed` of `microdao:unnamed`, whose limits
    they share.

    Raises:
        ValidationError: an id that is too long or holds control characters.
        Forbidden: an agent or a microDAO that the caller may not act as, or in.
    """
    if isinstance(metadata, CallMetadata):
        return metadata
    principal: Principal = request.state.principal
    headers = request.headers
    agent_id = (
        (metadata and metadata.agent_id) or headers.get("x-agent-id") or principal.agents.sole
    )
    microdao_id = (
        (metadata and metadata.microdao_id)
        or headers.get("x-microdao-id")
        or principal.microdaos.sole
    )
    if not (agent_id or principal.agents.all) or not (microdao_id or principal.microdaos.all):
        raise Forbidden(
            f"`{principal.name}` may not act as everyone everywhere: name agent and microDAO in "
            "`metadata`, or in the headers X-Agent-Id and X-Microdao-Id"
        )
    found = CallMetadata(
        agent_id=agent_id or f"agent:{UNNAMED}",
        microdao_id=microdao_id or f"microdao:{UNNAMED}",
        channel_id=(metadata and metadata.channel_id) or headers.get("x-channel-id") or None,
    )
    principal.check(agent_id=found.agent_id, microdao_id=found.microdao_id)
    return found


class MicrodaoQuery(Strict):
    """Query of a route that names one microDAO, or the header `X-Microdao-Id` in its place."""

    microdao_id: Identifier


class TenantRequest(JsonRequest):
    """A request whose tenant may be in `X-Microdao-Id` instead of the query's `microdao_id`."""

    @property
    def query_params(self) -> QueryParams:
        """The query, completed by the header."""
        query, named = super().query_params, self.headers.get(MICRODAO_HEADER, "").strip()
        if not named or query.get("microdao_id"):
            return query
        others = [item for item in query.multi_items() if item[0] != "microdao_id"]
        return QueryParams([*others, ("microdao_id", named)])


async def one_tenant(request: Request) -> None:
    """A dependency. Raises InvalidRequest when query and header name two tenants."""
    named = request.headers.get(MICRODAO_HEADER, "").strip()
    if named and request.query_params.get("microdao_id", named) != named:
        raise InvalidRequest("microdao_id: differs from the header X-Microdao-Id")
