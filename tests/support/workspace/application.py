"""The workspace's application over a real database, as in one replica."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

from backends.postgres.erasing import TenantRows
from backends.postgres.pool import Database, PoolLimits
from backends.workspace.channels import PostgresChannels
from backends.workspace.events import PostgresChannelEvents
from backends.workspace.messages import PostgresMessages
from backends.workspace.outbox import PostgresOutbox
from backends.workspace.projects import PostgresFollowUps, PostgresProjects
from contracts.health import Health
from interfaces.http.base.access import AccessControl
from interfaces.http.base.ingress import Ingress
from interfaces.http.workspace import channels_router, workspace_router
from services.access.quotas import Quotas
from services.workspace.channels import Channels
from services.workspace.dispatching import DispatchLimits, InvocationDispatcher
from services.workspace.live import LiveFeeds
from services.workspace.tools import WorkspaceTools
from tests.support.access import fixed_access
from tests.support.events import RecordedEvents
from tests.support.uvicorn_server import served

PREFIX = "/internal/messaging"


@dataclass
class RecordedNotices:
    """Implements MessageNotices."""

    created_messages: list[tuple[str, Any]] = field(default_factory=list)

    def created(self, microdao_id, message):
        self.created_messages.append((microdao_id, message))


@dataclass
class WorkspaceReplica:
    """One replica's parts."""

    app: Ingress
    channel_events: PostgresChannelEvents
    feeds: LiveFeeds
    notices: RecordedNotices
    dispatcher: InvocationDispatcher | None
    events: RecordedEvents
    url: str = ""


@contextlib.asynccontextmanager
async def workspace(
    database_url,
    events=None,
    *,
    invoker=None,
    limits=None,
    max_streams=50,
    secrets=(None, None),
    access=None,
    **ingress,
):
    """Yields a replica; with an `invoker` it also dispatches. `access` in place of the secrets."""
    events = events or RecordedEvents()
    database = Database(database_url, events=events, limits=PoolLimits(max_size=8))
    await database.open()
    projects, follow_ups = PostgresProjects(database), PostgresFollowUps(database)
    channel_events, outbox = PostgresChannelEvents(database), PostgresOutbox(database)
    feeds, notices = LiveFeeds(channel_events, events, max_streams=max_streams), RecordedNotices()
    access = access or fixed_access(*secrets)
    dispatcher = (
        InvocationDispatcher(
            outbox, invoker, events, limits or DispatchLimits(), access.directory.claimed
        )
        if invoker
        else None
    )
    channels = Channels(
        PostgresChannels(database),
        PostgresMessages(database),
        channel_events,
        outbox,
        feeds,
        notices,
        dispatcher.wake if dispatcher else lambda: None,
        Quotas(access.directory, TenantRows(database)),
    )
    router = workspace_router(
        channels_router(channels),
        projects,
        follow_ups,
        WorkspaceTools(projects, follow_ups),
        lambda: Health(status="ready"),
    )
    app = Ingress(router, AccessControl(access), events, **{"max_concurrent": 200, **ingress})
    feeds.start()
    if dispatcher is not None:
        dispatcher.start()
    try:
        yield WorkspaceReplica(app, channel_events, feeds, notices, dispatcher, events)
    finally:
        if dispatcher is not None:
            await dispatcher.close()
        await feeds.close()
        await database.close()


@contextlib.asynccontextmanager
async def served_workspace(database_url, events=None, **options):
    """A replica behind a real HTTP server; `url` has no application prefix."""
    async with (
        workspace(database_url, events, **options) as replica,
        served(replica.app, root_path=PREFIX) as url,
    ):
        replica.url = url.removesuffix(PREFIX)
        yield replica
