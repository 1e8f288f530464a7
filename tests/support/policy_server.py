"""A policy service over real HTTP, and the client that asks it."""

from __future__ import annotations

import asyncio
import contextlib

from backends.access.policy import PolicyServiceClient
from configs.access import PolicyServiceSettings
from tests.support.agents.runtime import recording_server
from tests.support.events import RecordedEvents

PERMIT = (200, {"effect": "permit", "reason": "tool_allowed"})
AWAY = "http://127.0.0.1:1"


class PolicyServer:
    """What the service answers next, and what it was asked; `None` never answers."""

    def __init__(self):
        self.answer, self.url, self.server = PERMIT, "", None

    async def __call__(self, _seen):
        if self.answer is None:
            await asyncio.sleep(3_600)
        return self.answer

    @property
    def asked(self):
        return [seen.body for seen in self.server.seen]


@contextlib.asynccontextmanager
async def policy_server():
    policies = PolicyServer()
    async with recording_server(policies) as policies.server:
        policies.url = policies.server.url
        yield policies


@contextlib.asynccontextmanager
async def policy_client(policies, events=None, *, lookup=lambda _name: None, **settings):
    """A client of the service; `client.settings` may be replaced."""
    given = PolicyServiceSettings.model_validate({"url": policies.url, **settings})
    client = PolicyServiceClient(lambda: client.settings, lookup, events or RecordedEvents())
    client.settings = given
    try:
        yield client
    finally:
        await client.close()
