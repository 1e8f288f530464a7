"""What the model thinks is neither posted, nor stored, nor obeyed, nor sent back to it."""

import json

import pytest
import pytest_asyncio

from tests.support.agents.chain import recall
from tests.support.agents.platform import blueprint, extra_tool, shared_platform
from tests.support.agents.scripted_model import Thought, shown

TOOLS = (extra_tool("notes.write", "write"), extra_tool("pages.read", "read"))
SECRET = "потай міркую про Олену"
ANSWER = "Зустріч у середу."
CALL = "TOOL: notes.write {}"
AS_JSON = json.dumps({"tool": "notes.write", "args": {}})

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(postgres, tmp_path_factory):
    async with shared_platform(
        postgres, tmp_path_factory.mktemp("platform"), tools=TOOLS
    ) as running:
        yield running


@pytest.fixture
def here(shared):
    shared.fresh(blueprint(tools=["notes.write", "pages.read"]))
    return shared


@pytest.mark.parametrize(
    "thought",
    [
        Thought(f"<think>{SECRET}</think>\n\n{ANSWER}"),
        Thought(f"<thinking>{SECRET}</thinking>{ANSWER}"),
        Thought(f"<think>{SECRET}\n{CALL}\n</think>\n{ANSWER}"),
        Thought(f"<think>{SECRET}</think><think>{AS_JSON}</think>{ANSWER}"),
        Thought(ANSWER, reasoning=f"{SECRET}\n{CALL}"),
        Thought(f"<think>{CALL}</think>{ANSWER}", reasoning=SECRET),
    ],
    ids=["tags", "thinking", "line", "json", "field", "both"],
)
async def test_people_get_the_answer_alone(here, thought):
    channel = await here.channel()
    here.model.mind = lambda body: thought
    answer = await here.ask(channel, "Коли зустріч?")
    assert (answer["reply"], await here.replies(channel)) == (ANSWER, [ANSWER])
    assert here.executed == []
    assert [SECRET in item["content"] for item in await recall(here, channel, "зустріч")] == [False]


@pytest.mark.parametrize(
    "thought",
    [
        Thought(f"<think>{SECRET}\n{CALL}"),
        Thought(f"<think>{SECRET}", finish_reason="length"),
        Thought(f"<think>{SECRET}", calls=[("notes__write", {})]),
        Thought(f"<think>{SECRET}</think>"),
        Thought(reasoning=f"{SECRET}\n{CALL}"),
        Thought(reasoning=AS_JSON),
    ],
    ids=["open", "cut", "native", "closed", "field", "json-field"],
)
async def test_a_thought_alone_is_no_answer_and_calls_nothing(here, thought):
    channel = await here.channel()
    here.model.script(thought, Thought(ANSWER))
    assert (await here.ask(channel, "Коли зустріч?"))["reply"] == ANSWER
    assert here.executed == []
    assert SECRET not in shown(here.model.bodies[1])

    here.model.mind = lambda body: thought
    assert (await here.ask(channel, "Коли зустріч?"))["status"] == "failed"
    assert not [text for text in await here.replies(channel) if SECRET in text or "notes" in text]


async def test_a_call_that_follows_a_thought_is_made_and_the_thought_is_not_sent_back(here):
    here.model.script(
        Thought(f"<think>{SECRET}</think>", calls=[("pages__read", "")]), Thought(ANSWER)
    )
    assert (await here.ask(await here.channel(), "Коли зустріч?"))["reply"] == ANSWER
    assert [execution.tool.id for execution in here.executed] == ["pages.read"]
    said = json.dumps(here.model.bodies[1]["messages"], ensure_ascii=False)
    assert SECRET not in said
    assert here.model.bodies[1]["messages"][-2]["tool_calls"][0]["function"]["arguments"] == "{}"
