"""HTTP routes of the workspace's channels, below `/internal/messaging`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, RootModel
from starlette.requests import Request
from starlette.responses import Response

from contracts.errors import Forbidden, InvalidRequest
from contracts.identity import Page
from contracts.workspace.channels import Channel, ChannelQuery, NewChannel, NewMember
from contracts.workspace.events import ChannelEvent, EventQuery, RunSteps
from contracts.workspace.invocations import Invocation, InvocationQuery
from contracts.workspace.messages import AgentPost, Message, MessageQuery, NewMessage
from interfaces.http.base.access import Headers
from interfaces.http.base.bodies import read_json, read_model
from interfaces.http.base.errors import JsonResponse, as_leaf
from interfaces.http.base.routing import add_route
from interfaces.http.base.sse import error_event
from interfaces.http.workspace.live_events import HEARTBEAT, HELLO, LiveEvents, named_event
from services.workspace.channels import Channels

MAX_BODY_BYTES = 256 << 10
MAX_KEY_CHARS = 1_024
TENANT_HEADER = "x-microdao-id"

Query = TypeVar("Query", bound=BaseModel)


class MessageList(RootModel[list[Message]]):
    """Answer of `GET /channels/{id}/messages`, newest first."""


class InvocationList(RootModel[list[Invocation]]):
    """Answer of `GET /channels/{id}/invocations`, newest first."""


class AddedSteps(BaseModel):
    """Answer of `POST /channels/{id}/run-steps`: how many steps were new."""

    added: int


@dataclass(frozen=True)
class ChannelRoutes:
    """The endpoints. `check_admin` raises Forbidden or Unauthorized for headers without the admin secret.

    A channel's id names its microDAO. A caller that also names one, as the query's `microdao_id` or in `X-Microdao-Id`,
    finds only that one's channels.
    """

    channels: Channels
    check_admin: Callable[[Headers], object]

    async def create(self, request: Request) -> Response:
        """`POST /channels`."""
        return _json(
            await self.channels.create(await read_model(request, NewChannel, MAX_BODY_BYTES)),
            status=201,
        )

    async def page(self, request: Request) -> Response:
        """`GET /channels`."""
        query = _query(request, ChannelQuery)
        if query.microdao_id is None:
            try:
                self.check_admin(request.scope["headers"])
            except Forbidden:
                raise Forbidden(
                    "give `microdao_id`, or present the admin secret for the channels of all microDAOs"
                ) from None
        return _json(await self.channels.page(query))

    async def find(self, request: Request) -> Response:
        """`GET /channels/{channel_id}`."""
        return _json(await self.channels.find(_channel(request), _tenant(request)))

    async def add_member(self, request: Request) -> Response:
        """`POST /channels/{channel_id}/members`."""
        member = await read_model(request, NewMember, MAX_BODY_BYTES)
        channel, added = await self.channels.add_member(_channel(request), _tenant(request), member)
        return _json(channel, status=201 if added else 200)

    async def remove_member(self, request: Request) -> Response:
        """`DELETE /channels/{channel_id}/members/{member_id}`."""
        return _json(
            await self.channels.remove_member(
                _channel(request), _tenant(request), request.path_params["member_id"]
            )
        )

    async def post(self, request: Request) -> Response:
        """`POST /channels/{channel_id}/messages`."""
        message = await read_model(request, NewMessage, MAX_BODY_BYTES)
        stored, created = await self.channels.post(
            _channel(request), _tenant(request), message, _key(request)
        )
        return _json(stored, status=201 if created else 200)

    async def messages(self, request: Request) -> Response:
        """`GET /channels/{channel_id}/messages`."""
        return _json(
            MessageList(
                await self.channels.messages(_channel(request), _query(request, MessageQuery))
            )
        )

    async def watch(self, request: Request) -> Response:
        """`GET /channels/{channel_id}/events`."""
        values = {name: value for name, value in request.query_params.items() if value}
        last = request.headers.get("last-event-id", "").strip()
        query = _query(request, EventQuery, {**values, **({"after": last} if last else {})})
        streams = AsyncExitStack()
        events = await streams.enter_async_context(
            await self.channels.watch(_channel(request), query)
        )
        return LiveEvents(_lines(events, request.state.request_id), streams.aclose)

    async def add_steps(self, request: Request) -> Response:
        """`POST /channels/{channel_id}/run-steps`."""
        steps = await read_model(request, RunSteps, MAX_BODY_BYTES)
        return _json(
            AddedSteps(
                added=await self.channels.add_steps(_channel(request), _tenant(request), steps)
            )
        )

    async def invocations(self, request: Request) -> Response:
        """`GET /channels/{channel_id}/invocations`."""
        return _json(
            InvocationList(
                await self.channels.invocations(_channel(request), _query(request, InvocationQuery))
            )
        )

    async def post_as_agent(self, request: Request) -> Response:
        """`POST /agents/{agent_id}/post-to-channel`, with a JSON body or, without any body, with query parameters."""
        body = await read_json(request, MAX_BODY_BYTES)
        post = (
            AgentPost.model_validate_json(body)
            if body.strip()
            else AgentPost.model_validate(dict(request.query_params))
        )
        agent_id = request.path_params["agent_id"]
        stored, created = await self.channels.post_as_agent(
            agent_id, post, _tenant(request), _key(request)
        )
        return _json(stored, status=201 if created else 200)


def add_channel_routes(router: APIRouter, routes: ChannelRoutes) -> None:
    """Adds every route of the channels."""
    common = (400, 401, 404, 503)
    add_route(
        router, "POST", "/channels", routes.create,
        summary="Create a channel in a microDAO", body=NewChannel, response=Channel, status=201, errors=(400, 401, 413, 503),
    )  # fmt: skip
    add_route(
        router, "GET", "/channels", routes.page,
        summary="Channels, newest first; without a microDAO those of all, for administrators",
        query=ChannelQuery, response=Page[Channel], errors=(400, 401, 403, 503),
    )  # fmt: skip
    add_route(
        router,
        "GET",
        "/channels/{channel_id}",
        routes.find,
        summary="One channel",
        response=Channel,
        errors=common,
    )
    add_route(
        router, "POST", "/channels/{channel_id}/members", routes.add_member,
        summary="Add a member", body=NewMember, response=Channel, status=201, answers={200: Channel}, errors=(*common, 409, 413),
    )  # fmt: skip
    add_route(
        router, "DELETE", "/channels/{channel_id}/members/{member_id}", routes.remove_member,
        summary="Remove a member", response=Channel, errors=common,
    )  # fmt: skip
    add_route(
        router, "POST", "/channels/{channel_id}/messages", routes.post,
        summary="Post a message; a human's invokes the channel's agents",
        body=NewMessage, response=Message, status=201, answers={200: Message}, errors=(*common, 403, 409, 413),
    )  # fmt: skip
    add_route(
        router, "GET", "/channels/{channel_id}/messages", routes.messages,
        summary="A channel's messages, newest first", query=MessageQuery, response=MessageList, errors=common,
    )  # fmt: skip
    add_route(
        router, "GET", "/channels/{channel_id}/events", routes.watch,
        summary="Live events `message.created`, `run.step`, `invocation.failed` as Server-Sent Events; resumes after `Last-Event-ID`",
        query=EventQuery, media_type="text/event-stream", errors=common,
    )  # fmt: skip
    add_route(
        router, "POST", "/channels/{channel_id}/run-steps", routes.add_steps,
        summary="Show steps of an agent's run", body=RunSteps, response=AddedSteps, errors=(*common, 403, 413),
    )  # fmt: skip
    add_route(
        router, "GET", "/channels/{channel_id}/invocations", routes.invocations,
        summary="Which agents the channel's messages had to reach, and whether they did",
        query=InvocationQuery, response=InvocationList, errors=common,
    )  # fmt: skip
    add_route(
        router, "POST", "/agents/{agent_id}/post-to-channel", routes.post_as_agent,
        summary="Post as an agent, once for a `run_id`; JSON body or query parameters",
        body=AgentPost, response=Message, status=201, answers={200: Message}, errors=(*common, 403, 409, 413),
    )  # fmt: skip


async def _lines(
    events: AsyncIterator[ChannelEvent | None], request_id: str
) -> AsyncGenerator[bytes, None]:
    yield HELLO
    try:
        async for event in events:
            yield (
                HEARTBEAT
                if event is None
                else named_event(event.kind, event.position, event.payload)
            )
    except Exception as error:  # noqa: BLE001  # the stream must end in an error event, never in silence
        yield error_event(as_leaf(error), request_id)


def _channel(request: Request) -> str:
    return str(request.path_params["channel_id"])


def _tenant(request: Request) -> str | None:
    return (
        request.query_params.get("microdao_id")
        or request.headers.get(TENANT_HEADER, "").strip()
        or None
    )


def _query(request: Request, model: type[Query], values: dict[str, str] | None = None) -> Query:
    """Fills a query's model; the microDAO may come in the header."""
    given = dict(request.query_params) if values is None else values
    tenant = _tenant(request)
    return model.model_validate(given if tenant is None else {**given, "microdao_id": tenant})


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key", "").strip()
    if len(key) > MAX_KEY_CHARS:
        raise InvalidRequest(f"the Idempotency-Key is longer than {MAX_KEY_CHARS} characters")
    return key or None


def _json(model: BaseModel, status: int = 200) -> JsonResponse:
    return JsonResponse(model.model_dump(mode="json", exclude_none=True), status_code=status)
