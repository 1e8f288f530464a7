"""Each message gets exactly one reply and has one effect while replicas of the agent runtime and of
the workspace are killed at random.

`make soak-agents` does the same to a whole graph with its local model.
"""

import random

import pytest

from benchmarks.agents.kill import Plan, shoot_and_ask
from tests.support.agents.platform import SOFIA, blueprint, extra_tool, platform
from tests.support.agents.processes import Replicas
from tests.support.agents.scripted_model import Thought

CHANNELS, MESSAGES = 50, 10
MOST_KILLS = 12


@pytest.mark.timeout(420)
async def test_each_message_gets_one_reply_while_replicas_are_killed(database_url, tmp_path):
    async with platform(
        database_url, tmp_path, tools=(extra_tool("notes.write", "write"),), agents=False
    ) as here:
        here.model.mind = mind
        blueprints = [
            blueprint(
                tools=["notes.write"], write_after_untrusted=True, memory={"recall": 2}
            ).model_dump(mode="json")
        ]
        both = [
            Replicas(name, database_url, here.url, blueprints) for name in ("workspace", "agents")
        ]
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

            plan = Plan(
                channels=CHANNELS,
                messages=MESSAGES,
                agent=SOFIA,
                pause_s=1.0,
                kill_every_s=2.0,
                give_up_s=300,
                linger_s=1.0,
            )
            outcome = await shoot_and_ask(here.url, plan, kill)
        finally:
            for replicas in both:
                await replicas.stop()
    print(*outcome.lines(), sep="\n")
    assert outcome.asked == CHANNELS * MESSAGES
    assert outcome.ok, outcome.lines()
    assert sum(outcome.kills.values()) >= 5, outcome.lines()
    effects = [execution.args["question"] for execution in here.executed]
    assert len(effects) == len(set(effects)) == CHANNELS * MESSAGES, (
        "each message has its one effect"
    )


def mind(body):
    """Writes the question down, then answers; each step takes a while."""
    delay_s = random.uniform(0.2, 1.0)
    question = next(
        message["content"] for message in reversed(body["messages"]) if message["role"] == "user"
    )
    if body["messages"][-1]["role"] == "tool":
        return Thought("Записала.", delay_s=delay_s)
    return Thought(calls=[("notes__write", {"question": question})], delay_s=delay_s)
