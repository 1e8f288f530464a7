"""The adapter of the in-cluster engine: its deadlines, and what happens when its caller leaves.

The engine is a scripted generator.
"""

import asyncio

import pytest

from configs.llm.config import ProviderSettings
from contracts.deadline import Deadline
from contracts.errors import UpstreamInvalidResponse, UpstreamTimeout
from contracts.llm.answers import StreamEnd
from contracts.llm.ports import Condition
from contracts.llm.routing import Target, Timeouts
from providers.local import LocalProvider
from providers.registry import ProviderResources
from services.llm.continuation import continued

CALM = Timeouts(5, 30, 30, 30)
QUESTION = [{"role": "user", "content": "hi"}]
ROLE = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


def token(text, finish_reason=None):
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish_reason}]}


class Engine:
    """Yields `chunks`, a number meaning a pause of so many seconds; knows whether its generations
    were stopped.
    """

    condition = Condition()

    def __init__(self, *chunks):
        self.chunks, self.stopped, self.bodies = chunks, 0, []

    async def awake(self, deadline):
        pass

    async def stream(self, body, deadline):
        self.bodies.append(body)
        try:
            for chunk in self.chunks:
                if isinstance(chunk, dict):
                    yield chunk
                else:
                    await asyncio.sleep(chunk)
        finally:
            self.stopped += 1


def provider_of(engine):
    return LocalProvider("local", ProviderSettings(type="local"), ProviderResources({}.get, engine))


async def items_of(engine, timeouts=CALM, deadline_s=30.0):
    stream = provider_of(engine).stream(
        QUESTION, Target("local", "tiny", timeouts), Deadline.after(deadline_s)
    )
    return [item async for item in stream]


async def test_a_stream_ends_with_its_finish_reason():
    *deltas, end = await items_of(Engine(ROLE, token("a"), token("b", "stop")))
    assert [delta.content for delta in deltas] == ["a", "b"]
    assert (type(end), end.finish_reason) == (StreamEnd, "stop")


@pytest.mark.parametrize(
    "chunks",
    [(ROLE,), (token("a"),), (token("a"), token("", "abort"))],
    ids=["nothing", "half", "aborted"],
)
async def test_a_generation_that_ends_early_is_no_answer(chunks):
    with pytest.raises(UpstreamInvalidResponse):
        await items_of(Engine(*chunks))


@pytest.mark.parametrize(
    ("chunks", "timeouts"),
    [
        ((60.0,), Timeouts(5, 0.2, 30, 30)),
        ((ROLE, 0.05) * 2000, Timeouts(5, 0.2, 30, 30)),  # roles are no content
        ((token("a"), 60.0), Timeouts(5, 30, 0.2, 30)),
        ((token("a"), 0.02) * 5000, Timeouts(5, 30, 30, 0.3)),
    ],
    ids=["silence", "roles only", "stall", "endless"],
)
async def test_silence_is_given_up_and_the_generation_stopped(chunks, timeouts):
    engine = Engine(*chunks)
    with pytest.raises(UpstreamTimeout):
        await items_of(engine, timeouts)
    assert engine.stopped == 1


async def test_the_requests_own_deadline_wins():
    with pytest.raises(UpstreamTimeout):
        await items_of(Engine(60.0), deadline_s=0.2)


async def test_leaving_stops_the_generation():
    engine = Engine(token("a"), 60.0)
    stream = provider_of(engine).stream(QUESTION, Target("local", "tiny", CALM), Deadline.after(30))
    assert (await anext(stream)).content == "a"
    await stream.aclose()
    assert engine.stopped == 1


def test_an_answer_is_continued_in_vllms_dialect():
    dialect = provider_of(Engine()).continuation
    messages, options = continued(dialect, QUESTION, "Half", {"max_tokens": 3})
    assert messages[-1] == {"role": "assistant", "content": "Half"}
    assert options["extra_body"]["continue_final_message"] is True
