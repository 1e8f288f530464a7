"""HTTP routes of the workspace, below `/internal/messaging`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Query, Response
from pydantic import BaseModel, StringConstraints, model_validator
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from common.tasks import end_tasks
from contracts.access.principals import acting
from contracts.errors import Forbidden
from contracts.health import Health
from contracts.identity import Page
from contracts.workspace.channels import Channel, ChannelQuery, NewChannel, NewMember
from contracts.workspace.events import ChannelEvent, EventQuery, RunSteps
from contracts.workspace.invocations import Invocation, InvocationQuery
from contracts.workspace.messages import AgentPost, Message, MessageQuery, NewMessage
from contracts.workspace.projects import (
    FollowUp,
    FollowUpQuery,
    FollowUpStore,
    NewProject,
    Project,
    ProjectQuery,
    ProjectStore,
    ToolBody,
)
from interfaces.http.base.errors import as_leaf
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.identity import TenantRequest
from interfaces.http.base.routing import PathId, Router, refusals
from interfaces.http.base.sse import EventStreamResponse, error_event
from services.workspace.channels import Channels
from services.workspace.tools import WorkspaceTools

HELLO = b"retry: 1000\n: connected\n\n"
HEARTBEAT = b": keep-alive\n\n"
MAX_BODY_BYTES = 256 << 10
IdempotencyKey = Annotated[
    str | None,
    StringConstraints(strip_whitespace=True, max_length=1_024),
    Header(alias="Idempotency-Key"),
]


def named_event(name: str, event_id: int, payload: object) -> bytes:
    """Returns one event with a name and the id from which a client resumes."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event_id, name.encode(), orjson.dumps(payload))


class LiveEvents(EventStreamResponse):
    """Sends events until they end or the client disconnects, which only `receive` reports."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(super().__call__(scope, receive, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks([sending, leaving])
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class AddedSteps(BaseModel):
    """Answer of `POST /channels/{id}/run-steps`: how many steps were new."""

    added: int


class WatchQuery(EventQuery):
    """An EventQuery in which empty values count as absent."""

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value}


async def _named_tenant(microdao_id: Annotated[str | None, Query()] = None) -> str | None:
    return microdao_id or None


async def _event_query(
    query: Annotated[WatchQuery, Query()],
    last_event_id: Annotated[str, Header(alias="Last-Event-ID")] = "",
) -> EventQuery:
    last = last_event_id.strip()
    return WatchQuery.model_validate({**query.model_dump(), "after": last}) if last else query


TenantName = Annotated[str | None, Depends(_named_tenant)]


def channels_router(channels: Channels) -> Router:
    """Returns the routes of channels, their members, events and invocations.

    A channel's id names its microDAO; a caller that also names one, in the query or in
    `X-Microdao-Id`, finds only channels of that one.
    """
    router = Router(MAX_BODY_BYTES, TenantRequest)

    @router.post("/channels", status_code=201, summary="Create a channel in a microDAO")
    async def create(channel: NewChannel) -> Channel:
        return await channels.create(channel)

    @router.get(
        "/channels",
        summary="Channels, newest first; without a microDAO those of all, for administrators",
    )
    async def page(query: Annotated[ChannelQuery, Query()], request: Request) -> Page[Channel]:
        if query.microdao_id is None and not request.state.principal.is_operator:
            raise Forbidden("give `microdao_id`: channels of all of them are for operators")
        return await channels.page(query)

    @router.get("/channels/{channel_id}", summary="One channel", responses=refusals(404))
    async def find(channel_id: PathId, tenant: TenantName) -> Channel:
        return await channels.find(channel_id, tenant)

    _add_member_routes(router, channels)
    _add_message_routes(router, channels)

    @router.get(
        "/channels/{channel_id}/events",
        summary="Live events as Server-Sent Events; resumes after `Last-Event-ID`",
        description="Events: `message.created`, `run.step`, `invocation.failed`.",
        status_code=200,
        response_class=LiveEvents,
        responses=refusals(404),
    )
    async def watch(
        channel_id: PathId, query: Annotated[EventQuery, Depends(_event_query)], request: Request
    ) -> Response:
        channel = await channels.find(channel_id, query.microdao_id)
        streams = AsyncExitStack()
        events = await streams.enter_async_context(await channels.watch(channel_id, query))
        return LiveEvents(_lines(events, request, channel.microdao_id), streams.aclose)

    @router.post(
        "/channels/{channel_id}/run-steps",
        summary="Show steps of an agent's run",
        responses=refusals(404),
    )
    async def add_steps(channel_id: PathId, tenant: TenantName, steps: RunSteps) -> AddedSteps:
        return AddedSteps(added=await channels.add_steps(channel_id, tenant, steps))

    @router.get(
        "/channels/{channel_id}/invocations",
        summary="Which agents the channel's messages had to reach, and whether they did",
        responses=refusals(404),
    )
    async def invocations(
        channel_id: PathId, query: Annotated[InvocationQuery, Query()]
    ) -> list[Invocation]:
        return await channels.invocations(channel_id, query)

    return router


def _add_member_routes(router: Router, channels: Channels) -> None:
    @router.post(
        "/channels/{channel_id}/members",
        summary="Add a member",
        status_code=201,
        responses={200: {"model": Channel}, **refusals(404, 409)},
    )
    async def add_member(
        channel_id: PathId, tenant: TenantName, member: NewMember, response: Response
    ) -> Channel:
        channel, is_new = await channels.add_member(channel_id, tenant, member)
        response.status_code = 201 if is_new else 200
        return channel

    @router.delete(
        "/channels/{channel_id}/members/{member_id}",
        summary="Remove a member",
        responses=refusals(404),
    )
    async def remove_member(channel_id: PathId, member_id: PathId, tenant: TenantName) -> Channel:
        return await channels.remove_member(channel_id, tenant, member_id)


def _add_message_routes(router: Router, channels: Channels) -> None:
    posted: dict[int | str, dict[str, Any]] = {200: {"model": Message}, **refusals(404, 409, 429)}

    @router.post(
        "/channels/{channel_id}/messages",
        summary="Post a message; a human's invokes the channel's agents",
        status_code=201,
        responses=posted,
    )
    async def post(
        channel_id: PathId,
        tenant: TenantName,
        message: NewMessage,
        response: Response,
        key: IdempotencyKey = None,
    ) -> Message:
        stored, is_new = await channels.post(channel_id, tenant, message, key or None)
        response.status_code = 201 if is_new else 200
        return stored

    @router.get(
        "/channels/{channel_id}/messages",
        summary="A channel's messages, newest first",
        responses=refusals(404),
    )
    async def messages(
        channel_id: PathId, query: Annotated[MessageQuery, Query()]
    ) -> list[Message]:
        return await channels.messages(channel_id, query)

    @router.post(
        "/agents/{agent_id}/post-to-channel",
        summary="Post as an agent, once for a `run_id`; JSON body or query parameters",
        status_code=201,
        responses=posted,
    )
    async def post_as_agent(
        agent_id: PathId,
        request: Request,
        response: Response,
        *,
        tenant: TenantName,
        post: AgentPost | None = None,
        key: IdempotencyKey = None,
    ) -> Message:
        query = request.query_params
        stored, is_new = await channels.post_as_agent(
            agent_id,
            post or AgentPost.model_validate(dict(query)),
            tenant,
            key or None,
        )
        response.status_code = 201 if is_new else 200
        return stored


async def _lines(
    events: AsyncIterator[ChannelEvent | None], request: Request, microdao_id: str
) -> AsyncGenerator[bytes, None]:
    """Ends with an error event, also once the caller may no longer watch this microDAO."""
    state = request.state
    yield HELLO
    try:
        async for event in events:
            state.admit(request.scope, request.url.path)
            acting().check(microdao_id=microdao_id)
            yield (
                HEARTBEAT
                if event is None
                else named_event(event.kind, event.position, event.payload)
            )
    except Exception as error:  # noqa: BLE001  # the stream must end in an error event
        yield error_event(as_leaf(error), state.request_id)


def workspace_router(
    channels: Router,
    projects: ProjectStore,
    follow_ups: FollowUpStore,
    tools: WorkspaceTools,
    health: Callable[[], Health],
) -> Router:
    """Returns the router of the application; `channels` holds the routes of its channels."""
    router = Router(MAX_BODY_BYTES)
    router.include_router(channels)

    @router.post("/projects", status_code=201, summary="Create a project in a microDAO")
    async def create_project(project: NewProject) -> Project:
        return await projects.create(project)

    @router.get("/projects", summary="A microDAO's projects, newest first")
    async def list_projects(query: Annotated[ProjectQuery, Query()]) -> Page[Project]:
        return await projects.page(query)

    @router.get("/follow-ups", summary="A microDAO's follow-ups, newest first")
    async def list_follow_ups(query: Annotated[FollowUpQuery, Query()]) -> Page[FollowUp]:
        return await follow_ups.page(query)

    @router.post("/tools/projects.list", summary="What the tool projects.list calls")
    async def tool_projects_list(call: ToolBody) -> list[dict[str, Any]]:
        return await tools.list_projects(call)

    @router.post(
        "/tools/followups.create",
        summary="What the tool followups.create calls, once for one Idempotency-Key",
        responses=refusals(404, 409),
    )
    async def tool_followups_create(call: ToolBody, key: IdempotencyKey = None) -> dict[str, Any]:
        return await tools.create_follow_up(call, key or None)

    add_health_routes(router, health)
    return router
