"""The status of the whole graph from those of its parts."""

import asyncio

import pytest

from contracts.errors import Unavailable
from contracts.health import Check, Health
from services.health.graph import GraphHealth


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
    health = GraphHealth({"memory": memory, "llm": application("ready", engine="ready")}, {})
    health.start()
    await asyncio.sleep(0.05)
    seen = health.health()
    await health.close()
    assert seen.status == status
    assert {
        name: check.state for name, check in seen.checks.items() if name.startswith("memory.")
    } == {f"memory.{name}": check.state for name, check in memory.last.checks.items()}
