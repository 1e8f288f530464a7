"""A scene for an answer that needs every source: earlier messages, a memory, and a project that a
tool finds.
"""

from tests.support.agents.platform import SOFIA, blueprint
from tests.support.agents.scripted_model import Thought, calling, shown

EARLIER = "Учора ми говорили про теплиці."
KNOWN = "Олена керує проєктами громади"
PROJECT = "Вертикальна ферма"
REPLY = f"Є проєкт «{PROJECT}»."


async def prepare_chain(here, mode):
    """Returns the channel; the model calls the tool in this form, and answers from what it then
    sees.
    """
    here.use(blueprint(tool_mode=mode))
    await here.project(PROJECT)
    memory = {
        "agent_id": SOFIA,
        "microdao_id": here.microdao,
        "kind": "conversation",
        "content": {"text": KNOWN},
    }
    await here.post("/internal/agent-memory/store", {**memory, "wait_indexed_s": 10}, 200)
    channel = await here.channel()
    await here.say(channel, EARLIER)

    def mind(body):
        if len(here.model.bodies) == 1:
            return calling(mode, "projects.list", {"status": "active"})
        return Thought(REPLY if PROJECT in shown(body) else "Не знаю.")

    here.model.mind = mind
    return channel


async def recall(here, channel, query):
    body = {"agent_id": SOFIA, "microdao_id": here.microdao, "channel_id": channel, "query": query}
    return (await here.post("/internal/agent-memory/query", body, 200))["items"]
