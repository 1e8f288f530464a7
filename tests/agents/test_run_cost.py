"""The dollars of one run: counted call by call, bounded by the blueprint and by whoever invokes."""

import asyncio
from decimal import Decimal

import pytest

from contracts.access.keys import Snapshot
from contracts.access.principals import Grants
from tests.support.access import APPLIED, SIGNING_KEY, fixed_access
from tests.support.agents.child import process
from tests.support.agents.platform import SOFIA, blueprint, extra_tool, platform
from tests.support.agents.scripted_model import Thought

KEY = "dk_the key of whoever invokes in these tests"
TOOLS = (extra_tool("notes.write", "write"),)
A_CENT = {"thinker": {"input": 100, "output": 0}}  # the model counts a hundred tokens of prompt


class Eager:
    """A model that calls a tool, with other arguments each time, as long as it has one.

    The call of number `hangs_at` never ends, until `goes_on`.
    """

    def __init__(self, hangs_at=None):
        self.hangs_at, self.hangs, self.goes_on = hangs_at, asyncio.Event(), False
        self.tools_offered = []

    def __call__(self, body):
        number = len(self.tools_offered)
        if number == self.hangs_at and not self.goes_on:
            self.hangs.set()
            return Thought(delay_s=60)
        self.tools_offered.append("tools" in body)
        if "tools" not in body:
            return Thought("Готово.")
        return Thought(calls=[("notes__write", {"text": str(number)})])


@pytest.fixture
async def here(database_url, tmp_path, request):
    options = {"tools": TOOLS, "agents": False, "prices": getattr(request, "param", A_CENT)}
    access = fixed_access(principals={"olena-web": Grants()}, keys={KEY: "olena-web"})
    async with platform(database_url, tmp_path, access=access, **options) as here:
        yield here


def agent(**limits):
    return blueprint(tools=["notes.write"], write_after_untrusted=True, limits=limits)


def costs(run):
    return [step.get("cost_usd") for step in run["steps"] if step["kind"] == "llm"]


async def asked(here, model, *, most=None):
    """Lets a principal invoke the agent, whose `max_cost_per_run` is `most`; returns the run."""
    grants = {"agents": ["*"], "microdaos": ["*"], "max_cost_per_run": most}
    directory, known = here.access.directory, {"olena-web": Grants.model_validate(grants)}
    keys = directory._snapshot.keys
    directory.take(Snapshot(directory.revision + 1, known, keys, SIGNING_KEY, APPLIED))
    headers = {"x-api-key": KEY}
    here.model.mind = model
    channel = await here.channel()
    payload = {"channel_id": channel, "message_id": await here.say(channel, "Запиши")}
    body = {"agent_id": SOFIA, "entrypoint": "channel_message", "payload": payload}
    answer = await here.post("/internal/agent-runtime/invocations", body, 200, headers=headers)
    assert (answer["status"], answer["reply"]) == ("answered", "Готово.")
    return await here.run(answer["run_id"])


@pytest.mark.parametrize(
    ("own", "granted", "calls"),
    [
        (None, None, 6),  # the steps
        (0.025, None, 4),
        (None, 0.025, 4),
        (0.015, 0.025, 3),
        (0.025, 0.015, 3),
        (0.01, 1, 2),
    ],
)
async def test_once_a_run_has_cost_what_it_may_its_next_call_is_the_last(here, own, granted, calls):
    here.use(agent(cost_usd=own))
    model = Eager()
    async with here.agents():
        run = await asked(here, model, most=granted)
    assert model.tools_offered == [True] * (calls - 1) + [False]
    assert list(map(Decimal, costs(run))) == [Decimal("0.01")] * calls


@pytest.mark.parametrize("here", [{}], indirect=True)
async def test_a_call_without_a_known_price_is_not_counted(here):
    here.use(agent(cost_usd=0.000000001))
    model = Eager()
    async with here.agents():
        run = await asked(here, model)
    assert costs(run) == [None] * 6


async def test_a_replica_that_takes_a_run_over_knows_what_it_has_cost(here, tmp_path):
    here.use(agent(cost_usd=0.02))
    here.model.mind = model = Eager(hangs_at=1)
    channel = await here.channel()
    message = await here.say(channel, "Запиши")
    async with process(here, tmp_path) as (child, url):
        payload = {"channel_id": channel, "message_id": message}
        body = {"agent_id": SOFIA, "entrypoint": "channel_message", "payload": payload}
        answer = await here.http.post(f"{url}/invocations", json=body, params={"wait": "false"})
        assert answer.status_code == 202, answer.text
        async with asyncio.timeout(60):
            await model.hangs.wait()
        child.kill()
        await child.wait()
    model.goes_on = True
    async with here.agents():
        ended = await here.invoke(channel, message)
        run = await here.run(ended["run_id"])
    assert (ended["status"], run["attempt"]) == ("answered", 2)
    assert model.tools_offered == [True, True, False]
    assert list(map(Decimal, filter(None, costs(run)))) == [Decimal("0.01")] * 3
