"""A conversation over days: statements are found by meaning, in either language, after restarts.
The real embedding model.
"""

from __future__ import annotations

import psycopg
import pytest

from configs.engines.config import load_engines
from configs.environment import read_environment
from deployments.engines.sentence_encoder import InProcessEmbedder
from tests.support.agents.platform import OWN, blueprint, platform
from tests.support.agents.scripted_model import Thought, shown

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]

DAYS = [
    [
        (
            "Нова теплиця стоятиме біля старої школи, за яблуневим садом.",
            "Записала: теплиця буде біля школи.",
        ),
        ("У п'ятницю о шостій збираємося в бібліотеці.", "Добре, у п'ятницю о шостій."),
    ],
    [
        (
            "The budget for the playground is 40 thousand hryvnias.",
            "Noted: 40 thousand for the playground.",
        ),
        ("Хто принесе чай на збори?", "Поки ніхто не зголосився."),
    ],
    [("Скільки людей прийде на толоку?", "Записалося двадцятеро.")],
]
QUESTIONS = [
    ("Where will the greenhouse be built?", "біля старої школи"),
    ("Який бюджет дитячого майданчика?", "40 thousand hryvnias"),
    ("When do we meet at the library?", "У п'ятницю о шостій"),
]


@pytest.fixture(scope="module")
def embedder():
    environment = read_environment()
    return InProcessEmbedder(load_engines(environment).embedder, environment)


async def test_statements_are_found_days_later_in_either_language(
    database_urls, tmp_path, embedder
):
    channel = None
    for day in DAYS:
        async with platform(database_urls.service, tmp_path, embedder=embedder) as here:
            here.use(blueprint(history=2, memory={"timeout_s": 30}))
            channel = channel or await here.channel()
            for text, reply in day:
                here.model.script(Thought(reply))
                assert (await here.ask(channel, text))["reply"] == reply
            await embedded(here)
        await a_day_passes(database_urls.superuser)
    async with platform(database_urls.service, tmp_path, embedder=embedder) as here:
        here.use(blueprint(history=1, memory={"recall": 3, "store": False, "timeout_s": 30}))
        for question, said in QUESTIONS:
            here.model.bodies.clear()
            here.model.script(Thought("Так."))
            answer = await here.ask(channel, question)
            assert said in shown(here.model.bodies[0]), question
            assert (await here.run(answer["run_id"]))["memory_ids"]
        other = await here.channel()
        here.model.bodies.clear()
        await here.ask(other, QUESTIONS[0][0])
        assert "біля старої школи" not in shown(here.model.bodies[0])


async def embedded(here):
    """Waits until all is found by meaning: a store of the same content waits for its embedding."""
    memory = {
        "agent_id": "agent:other",
        "microdao_id": OWN,
        "kind": "task",
        "content": {"text": "останнє"},
        "wait_indexed_s": 60,
    }
    assert (await here.post("/internal/agent-memory/store", memory, 200))["indexed"]


async def a_day_passes(url):
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for table in ("channel_messages", "memory_events", "agent_memories", "memories"):
            await connection.execute(
                f"UPDATE {table} SET created_at = created_at - interval '1 day'"
            )
