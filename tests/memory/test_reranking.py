"""Queries whose best items a cross-encoder reads; the model itself is in tests/engines."""

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.memory import MemorySettings
from contracts.deadline import Deadline
from contracts.errors import DaarionError, EngineUnavailable, Internal, Overloaded
from contracts.memory.api import Item, QueryRequest
from contracts.memory.settings import RerankSettings
from services.memory.reranking import Reranking
from tests.support.events import RecordedEvents
from tests.support.memory.application import SOFIA, memory_application

WRONG = "Ключ від майстерні ключ від майстерні: вартість копії 40 гривень"
RIGHT = "Запасний ключ висить у Назара біля входу"
OTHER = "Автобус зупиняється біля лікарні о сьомій"
QUESTION = "Де ключ від майстерні?"


class Reader:
    """Implements the Reranker port: `scores` by text, else 0.1; `hangs` or raises `error`."""

    def __init__(self, scores: dict[str, float] | None = None) -> None:
        self.scores = scores or {}
        self.error: DaarionError | None = None
        self.hangs = False
        self.calls: list[dict[str, Any]] = []

    async def score(
        self, question: str, texts: Sequence[str], *, tenant: str, deadline: Deadline
    ) -> list[float]:
        self.calls.append({"question": question, "texts": list(texts), "tenant": tenant})
        if self.hangs:
            await asyncio.sleep(deadline.remaining())
        if self.error is not None:
            raise self.error
        deadline.check()
        return [self.scores.get(text, 0.1) for text in texts]


@asynccontextmanager
async def memories(database_url, tmp_path, embedder, events, reranker, **rerank):
    settings = MemorySettings.model_validate(
        {"knowledge_base": {"interval_s": 0}, "query": {"rerank": rerank}}
    )
    async with memory_application(
        database_url, tmp_path, embedder, events, settings=settings, reranker=reranker
    ) as memory:
        for text in (WRONG, RIGHT, OTHER):
            await memory.store(text)
        yield memory


@pytest.fixture
def reader() -> Reader:
    return Reader({RIGHT: 0.95})


@pytest.fixture
async def memory(database_url, tmp_path, embedder, events, reader):
    async with memories(
        database_url, tmp_path, embedder, events, reader, timeout_s=60
    ) as application:
        yield application


async def fused(memory, reader) -> dict[str, Any]:
    """Returns the answer without the reranker."""
    reader.error = EngineUnavailable("away")
    answer = await memory.query(QUESTION, explain=True)
    reader.error = None
    return answer


async def test_what_the_cross_encoder_prefers_comes_first_and_explain_shows_why(memory, reader):
    before = {item["content"]: item for item in (await fused(memory, reader))["items"]}
    answer = await memory.query(QUESTION, explain=True)
    assert "degraded" not in answer
    assert max(before, key=lambda text: before[text]["score"]) == WRONG
    assert answer["items"][0]["content"] == RIGHT
    for item in answer["items"]:
        score = 0.95 if item["content"] == RIGHT else 0.1
        alone = before[item["content"]]
        assert item["score"] == pytest.approx(0.3 * alone["score"] + 0.7 * score, abs=1e-4)
        assert item["explain"]["scores"] == {**alone["explain"]["scores"], "rerank": score}
        assert item["explain"]["ranks"] == alone["explain"]["ranks"]
    assert "explain" not in (await memory.query(QUESTION))["items"][0]


async def test_it_reads_the_question_with_the_items_own_texts_for_the_tenant(memory, reader):
    await memory.query(QUESTION, limit=1)
    (call,) = reader.calls
    assert call["question"] == QUESTION
    assert sorted(call["texts"]) == sorted([WRONG, RIGHT, OTHER])
    assert call["tenant"] == f"{SOFIA['microdao_id']}/{SOFIA['agent_id']}"


@pytest.mark.parametrize(
    "error",
    [Overloaded("full"), EngineUnavailable("away"), Internal("a defect")],
    ids=lambda error: error.type,
)
async def test_when_it_fails_the_answer_is_that_of_fusion_and_says_so(
    memory, reader, events, error
):
    expected = (await fused(memory, reader))["items"]
    events.events.clear()
    reader.error = error
    answer = await memory.query(QUESTION, explain=True)
    assert answer["degraded"] == ["rerank"]
    assert [item["content"] for item in answer["items"]] == [item["content"] for item in expected]
    assert all("rerank" not in item["explain"]["scores"] for item in answer["items"])
    (event,) = events.named("memory.arm_down")
    assert (event["arm"], event["error"]) == ("rerank", error.type)


async def test_both_failures_are_named(memory, reader, embedder):
    embedder.go_away()
    reader.error = EngineUnavailable("away")
    assert (await memory.query(QUESTION))["degraded"] == ["dense", "rerank"]


@pytest.mark.parametrize(
    ("rerank", "query"),
    [({"timeout_s": 0.05}, {}), ({"timeout_s": 60}, {"timeout_s": 4})],
    ids=["its own time", "the query's time"],
)
async def test_when_it_is_late_the_answer_comes_in_time_without_it(
    database_url,
    tmp_path,
    embedder,
    events,
    reader,
    rerank,
    query,
):
    reader.hangs = True
    async with memories(database_url, tmp_path, embedder, events, reader, **rerank) as memory:
        answer = await memory.query(QUESTION, **query)
    assert answer["degraded"] == ["rerank"]
    assert answer["items"][0]["content"] == WRONG
    (event,) = events.named("memory.arm_down")
    assert (event["arm"], event["error"]) == ("rerank", "deadline_exceeded")


async def test_a_reload_switches_it_off_and_on(memory, reader):
    def settings(candidates: int) -> MemorySettings:
        return MemorySettings.model_validate({"query": {"rerank": {"candidates": candidates}}})

    await memory.runtime.reconfigure(settings(0))
    answer = await memory.query(QUESTION, explain=True)
    assert "degraded" not in answer
    assert answer["items"][0]["content"] == WRONG
    assert reader.calls == []
    await memory.runtime.reconfigure(settings(30))
    assert (await memory.query(QUESTION))["items"][0]["content"] == RIGHT


async def test_items_beyond_those_it_reads_stay_below_in_their_order(memory, reader):
    expected = [item["content"] for item in (await fused(memory, reader))["items"]]
    await memory.runtime.reconfigure(
        MemorySettings.model_validate({"query": {"rerank": {"candidates": 2, "timeout_s": 60}}})
    )
    reader.calls.clear()
    reader.scores = {expected[0]: 0.0, expected[1]: 1.0, expected[2]: 1.0}
    found = [item["content"] for item in (await memory.query(QUESTION))["items"]]
    assert [call["texts"] for call in reader.calls] == [expected[:2]]
    assert found == [expected[1], expected[0], expected[2]]


UNIT = st.floats(0, 1)


@given(st.lists(st.tuples(UNIT, UNIT), max_size=12), st.integers(1, 12), st.floats(0.01, 1))
def test_scores_stay_in_0_to_1_and_fall_along_the_answer(pairs, candidates, weight):
    pairs.sort(reverse=True)
    items = [
        Item(id=str(number), kind="task", content=str(number), meta={}, score=round(score, 6))
        for number, (score, _) in enumerate(pairs)
    ]
    reader = Reader({str(number): score for number, (_, score) in enumerate(pairs)})
    step = Reranking(reader, RerankSettings(candidates=candidates, weight=weight), RecordedEvents())
    found, failed = asyncio.run(
        step.reordered(QueryRequest(**SOFIA, query=QUESTION), items, Deadline.after(60), "request")
    )
    assert not failed
    assert sorted(item.id for item in found) == sorted(item.id for item in items)
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert [item.id for item in found[candidates:]] == [item.id for item in items[candidates:]]
