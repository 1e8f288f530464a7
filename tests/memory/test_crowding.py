"""Equal memories and the chunks of a long document leave room for the others in every arm."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from contracts.deadline import Deadline
from contracts.identity import Tenant
from contracts.memory.ports import Filters, ItemCandidate
from tests.support.memory import hashing_embedder
from tests.support.memory.application import SOFIA, Memory, eventually, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder

TENANT = Tenant(**SOFIA)
QUESTION = "чи працює насос теплиці"
EQUAL = "Насос теплиці працює"
OTHERS = [
    f"Насос теплиці працює, сказала людина номер {number}, коли {number * 7} разів поливала"
    for number in range(12)
]
CANDIDATES = 100
START = datetime(2026, 1, 1, tzinfo=UTC)


async def stored(memory: Memory, texts: Sequence[str], first: int = 0) -> list[str]:
    """Imports the texts as memories with different meta; returns their ids once indexed."""
    ids = [f"mem-{first + number}" for number in range(len(texts))]
    records = [
        {
            "type": "memory",
            "id": name,
            "kind": "task",
            "content": {"text": text},
            "meta": {"id": name},
            "created_at": (START + timedelta(minutes=first + number)).isoformat(),
        }
        for number, (name, text) in enumerate(zip(ids, texts, strict=True))
    ]
    lines = [*map(json.dumps, records), json.dumps({"type": "end", "count": len(records)})]
    imported = succeeded(
        await memory.client.post("/import", params=SOFIA, content="\n".join(lines).encode())
    )
    assert imported["imported"] == len(texts)

    async def indexed() -> bool:
        return all([await memory.runtime.cases.records.is_indexed(TENANT, name) for name in ids])

    await eventually(indexed)
    return ids


async def found(
    memory: Memory, embedder: HashingEmbedder, arm: str, filters: Filters
) -> list[ItemCandidate]:
    recall = memory.runtime.cases.recall
    scope = await recall.scopes.scope_of(TENANT)
    if arm == "dense":
        question = await embedder.embed([QUESTION], "query", tenant="", deadline=Deadline.after(10))
        return await recall.dense.search(scope, filters, question, CANDIDATES)
    return (await recall.lexical.search(scope, filters, QUESTION, CANDIDATES)).candidates


@pytest.mark.parametrize("filters", [Filters(), Filters(kinds=("task",))], ids=["all", "filtered"])
@pytest.mark.parametrize("arm", ["dense", "lexical"])
async def test_hundreds_of_equal_memories_are_one_candidate(
    memory: Memory, embedder: HashingEmbedder, arm: str, filters: Filters
):
    equal = await stored(memory, [EQUAL] * 350)
    others = await stored(memory, OTHERS, len(equal))
    names = [candidate.id for candidate in await found(memory, embedder, arm, filters)]
    assert names[0] == equal[-1], "of equal memories the newest"
    assert sorted(names[1:]) == sorted(others)


async def test_both_arms_take_the_same_of_equal_memories_that_were_embedded_in_different_batches(
    memory: Memory, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
):
    """A text's vector differs in its last bits with the other texts of its batch."""
    plain = hashing_embedder.vector

    def nearly(text: str, dimension: int) -> list[float]:
        off = 1e-3 * embedder.passages
        return [value + off * (number == 0) for number, value in enumerate(plain(text, dimension))]

    monkeypatch.setattr(hashing_embedder, "vector", nearly)
    for number in range(3):
        (newest,) = await stored(memory, [EQUAL], number)
    monkeypatch.undo()
    for arm in ("dense", "lexical"):
        assert [candidate.id for candidate in await found(memory, embedder, arm, Filters())] == [
            newest
        ], arm


@pytest.mark.parametrize("limit", [1, 5, 13])
async def test_a_query_answers_with_as_many_different_memories_as_asked_for(
    memory: Memory, embedder: HashingEmbedder, limit: int
):
    await stored(memory, OTHERS, 1_000)
    await stored(memory, [EQUAL] * 120)
    for _ in ("with the embedder", "without"):
        contents = await memory.contents(QUESTION, limit=limit)
        assert len(contents) == len(set(contents)) == limit
        assert contents[0] == EQUAL
        embedder.go_away()


@pytest.mark.parametrize("arm", ["dense", "lexical"])
async def test_a_long_document_is_one_candidate(
    memory: Memory, embedder: HashingEmbedder, arm: str
):
    document = " ".join(f"Насос теплиці працює {number}." for number in range(9_000))
    names = await stored(memory, [document, *OTHERS])
    assert sorted(
        candidate.id for candidate in await found(memory, embedder, arm, Filters())
    ) == sorted(names)
    contents = await memory.contents(QUESTION, limit=len(names))
    assert set(OTHERS) < set(contents)


async def test_a_chunk_of_two_long_documents_is_shown_once_and_both_are_found(
    memory: Memory, embedder: HashingEmbedder
):
    """The better document keeps the shared chunk, the other is found by a chunk of its own."""
    pad = " ".join(["звіт"] * 150)
    first, second = await stored(memory, [f"{EQUAL} і тиск добрий. {pad}", f"{EQUAL}. {pad}"])
    names = [candidate.id for candidate in await found(memory, embedder, "lexical", Filters())]
    assert sorted(names) == sorted([first, second])
