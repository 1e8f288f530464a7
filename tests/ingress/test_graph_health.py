"""The status of the whole graph from those of its parts."""

import asyncio

import pytest

from backends.http.application_health import ApplicationHealth
from common.http.client import open_client
from contracts.errors import Unavailable
from contracts.health import Check, Health
from interfaces.http.base.access import AccessControl
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.ingress import Ingress
from interfaces.http.base.routing import Router
from services.health.graph import GraphHealth
from tests.support.access import fixed_access
from tests.support.events import RecordedEvents
from tests.support.uvicorn_server import served


class Application:
    def __init__(self, health):
        self.last = health

    async def probe(self):
        if self.last.status not in {"ready", "degraded"}:
            raise Unavailable("not ready")


def application(status, **states):
    checks = {
        name: Check(state=state, required=False, age_s=0, since_s=0)
        for name, state in states.items()
    }
    return Application(Health(status=status, checks=checks))


@pytest.mark.parametrize(
    ("memory", "status"),
    [
        (application("ready", database="ready", embedder="ready"), "ready"),
        (application("degraded", database="ready", embedder="unavailable"), "degraded"),
        (application("unavailable", database="unavailable"), "starting"),
    ],
    ids=["all ready", "an optional part is away", "an application never was ready"],
)
async def test_the_graphs_status_is_the_worst_of_its_parts(memory, status):
    health = GraphHealth(
        {"memory": memory, "llm": application("ready", engine="ready")}, {}, RecordedEvents()
    )
    health.start()
    await asyncio.sleep(0.05)
    seen = health.health()
    await health.close()
    assert seen.status == status
    assert {
        name: check.state for name, check in seen.checks.items() if name.startswith("memory.")
    } == {f"memory.{name}": check.state for name, check in memory.last.checks.items()}


async def test_an_application_shows_its_checks_to_whoever_presents_a_delegation(events):
    access = fixed_access("s3cret")
    router, seen = Router(), application("degraded", nats="starting").last
    add_health_routes(router, lambda: seen)
    ingress = Ingress(router, AccessControl(access), events, max_concurrent=5)
    async with served(ingress) as url, open_client() as client:
        known = ApplicationHealth(client, f"{url}/health", access.delegations.current)
        await known.probe()
        assert known.last == seen
        stranger = ApplicationHealth(client, f"{url}/health")
        await stranger.probe()
        assert stranger.last == Health(status="degraded")
