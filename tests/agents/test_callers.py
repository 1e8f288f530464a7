"""Runs act for whoever invoked them: they reach what that principal may, as long as it may."""

import asyncio

import pytest

from contracts.access.keys import LiveKey, Snapshot, key_hash
from contracts.access.principals import Grants
from contracts.identity import new_id
from services.agents.language import APOLOGIES
from tests.support.access import APPLIED, SIGNING_KEY, fixed_access
from tests.support.agents.child import until
from tests.support.agents.platform import OLENA, OWN, SOFIA, blueprint, platform
from tests.support.agents.scripted_model import Thought

KEY = "dk_the key of whoever invokes in these tests"
ACTS = {"agents": [SOFIA, OLENA], "microdaos": [OWN]}
SORRY = set(APOLOGIES.values())


@pytest.fixture
async def here(database_url, tmp_path):
    """A platform that demands a key; Olena's principal is known by `KEY`."""
    async with platform(
        database_url, tmp_path, access=fixed_access("s3cret"), dispatch=True
    ) as running:
        running.use(blueprint(tools=["projects.list"]))
        knows(running, Grants(**ACTS))
        running.http.headers["x-api-key"] = KEY
        yield running


def knows(here, grants):
    """Makes every replica know the caller with these grants, or no more."""
    revision = here.access.directory.revision + 1
    known = {} if grants is None else {"olena-web": grants}
    keys = {key_hash(KEY.encode()): LiveKey(new_id(), "olena-web", None)} if known else {}
    here.access.directory.take(Snapshot(revision, known, keys, SIGNING_KEY, APPLIED))


async def last_run(here):
    here.http.headers["x-api-key"] = "s3cret"
    answer = await here.http.get("/internal/agent-runtime/runs", params={"microdao_id": OWN})
    return answer.json()["items"][0]


async def test_a_run_uses_model_tools_and_memory_for_its_caller(here):
    await here.project("Теплиця")
    here.model.script(Thought(calls=[("projects__list", {})]), Thought("Є Теплиця."))
    channel = await here.channel()
    run = await here.ask(channel, "Які в нас проєкти?")
    assert (run["status"], run["reply"]) == ("answered", "Є Теплиця.")
    assert "Теплиця" in str(here.model.bodies[-1])
    assert await here.replies(channel) == ["Є Теплиця."]


@pytest.mark.parametrize(
    ("grants", "status", "says"),
    [
        ({**ACTS, "agents": [OLENA]}, 403, "act as `agent:sofia`"),
        ({**ACTS, "microdaos": ["microdao:8"]}, 404, "no such channel"),
    ],
)
async def test_only_an_agent_and_a_microdao_of_its_own_are_invoked(here, grants, status, says):
    channel = await here.channel()
    knows(here, Grants(**grants))
    answer = await here.invoke(channel)
    assert answer["http"] == status
    assert says in answer["error"]["message"]
    assert here.model.bodies == []


async def test_a_run_asks_no_model_that_its_caller_may_not(here):
    channel = await here.channel()
    message = await here.say(channel, "Привіт")
    knows(here, Grants(**ACTS, models=["another-model"]))
    run = await here.invoke(channel, message)
    assert run["status"] == "failed"
    assert here.model.bodies == []
    (apology,) = await here.replies(channel)
    assert apology in SORRY


async def test_a_run_ends_with_an_apology_once_its_principal_was_withdrawn(here):
    asked, go_on = asyncio.Event(), asyncio.Event()

    def mind(_body):
        asked.set()
        return Thought(calls=[("projects__list", {})], until=go_on)

    here.model.mind = mind
    channel = await here.channel()
    await here.say(channel, "Які в нас проєкти?")
    async with asyncio.timeout(60):
        await asked.wait()
    knows(here, None)
    go_on.set()

    async def ended():
        run = await last_run(here)
        return run if run["status"] not in {"queued", "running"} else None

    run = await until(ended)
    assert (run["status"], run["error"]) == ("failed", "forbidden")
    (apology,) = await here.replies(channel)
    assert apology in SORRY


async def test_a_message_of_a_withdrawn_principal_reaches_no_agent(here):
    here.door.away.add("agents")
    channel = await here.channel()
    await here.say(channel, "Привіт")
    knows(here, None)
    here.door.away.clear()
    here.http.headers["x-api-key"] = "s3cret"

    async def failed():
        answer = await here.http.get(
            f"/internal/messaging/channels/{channel}/invocations", params={"microdao_id": OWN}
        )
        (invocation,) = answer.json()
        return invocation if invocation["state"] == "failed" else None

    assert "withdrawn" in (await until(failed))["reason"]
    assert here.model.bodies == []
