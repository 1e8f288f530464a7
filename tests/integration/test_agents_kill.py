"""Each message gets exactly one reply and has one effect while replicas of the agent runtime and of the workspace are killed at random.

`python -m benchmarks.agents_kill` does the same to a whole graph, with fifty channels.
"""

import random

import pytest

from benchmarks.agents_kill import Plan, shoot_and_ask
from tests.support.agent_platform import SOFIA, blueprint, extra_tool, platform
from tests.support.agent_processes import Replicas
from tests.support.scripted_model import Thought

MOST_KILLS = 6


@pytest.mark.timeout(300)
async def test_each_message_gets_one_reply_while_replicas_are_killed(database_url, tmp_path):
    async with platform(database_url, tmp_path, tools=(extra_tool("notes.write", "write"),), agents=False) as here:
        here.model.mind = mind
        blueprints = [blueprint(tools=["notes.write"], write_after_untrusted=True, memory={"recall": 2}).model_dump(mode="json")]
        both = [Replicas(name, database_url, here.url, blueprints) for name in ("workspace", "agents")]
        try:
            for replicas in both:
                await replicas.start()
                here.door.apps[replicas.name] = replicas
            killed = []

            async def kill():
                mortal = [replicas for replicas in both if replicas.alive > 1]
                if not mortal or len(killed) == MOST_KILLS:
                    return None
                killed.append(await random.choice(mortal).kill_one())
                return killed[-1]

            plan = Plan(channels=5, messages=3, agent=SOFIA, pause_s=1.5, kill_every_s=0.8, give_up_s=200, linger_s=1.0)
            outcome = await shoot_and_ask(here.url, plan, kill)
        finally:
            for replicas in both:
                await replicas.stop()
    print(*outcome.lines(), sep="\n")
    assert outcome.asked == 15
    assert outcome.ok, outcome.lines()
    assert outcome.apologies == 0, outcome.lines()
    assert sum(outcome.kills.values()) >= 2, outcome.lines()
    effects = [execution.args["question"] for execution in here.executed]
    assert len(effects) == len(set(effects)) == 15, "each message has its one effect"


def mind(body):
    """Writes the question down, then answers; each step takes a while."""
    delay_s = random.uniform(0.2, 1.0)
    question = next(message["content"] for message in reversed(body["messages"]) if message["role"] == "user")
    if body["messages"][-1]["role"] == "tool":
        return Thought("Записала.", delay_s=delay_s)
    return Thought(calls=[("notes__write", {"question": question})], delay_s=delay_s)
