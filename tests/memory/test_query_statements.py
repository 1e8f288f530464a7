"""A query reads the tenant's areas once and gives them to every arm."""

from contextvars import ContextVar
from typing import Any

import pytest

from backends.postgres.connection import BoundedConnection
from tests.support.memory.application import SOFIA, Memory, succeeded

STATEMENTS: ContextVar[list[str] | None] = ContextVar("STATEMENTS", default=None)
"""Statements of the request; background tasks were started without the list."""


@pytest.fixture
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    execute, run_alone = BoundedConnection.execute, BoundedConnection.run_alone

    def record(query: Any) -> None:
        if (seen := STATEMENTS.get()) is not None:
            seen.append(query if isinstance(query, str) else query.as_string())

    async def executing(
        self: BoundedConnection, query: Any, *arguments: Any, **options: Any
    ) -> Any:
        record(query)
        return await execute(self, query, *arguments, **options)

    async def running(self: BoundedConnection, context: Any, statement: Any, values: Any) -> Any:
        record(statement)
        return await run_alone(self, context, statement, values)

    monkeypatch.setattr(BoundedConnection, "execute", executing)
    monkeypatch.setattr(BoundedConnection, "run_alone", running)


@pytest.mark.usefixtures("_recorded")
async def test_a_query_reads_the_areas_once(memory: Memory):
    folder = memory.data_dir / "kb" / "shared"
    folder.mkdir(parents=True)
    (folder / "rules.md").write_text("Правила каси", encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {}))
    await memory.store("Каса відкрита до шостої")
    token = STATEMENTS.set([])
    answer = await memory.query("каса", explain=True, kinds=["conversation", "kb"])
    seen = STATEMENTS.get()
    STATEMENTS.reset(token)
    assert {item["content"] for item in answer["items"]} == {
        "Каса відкрита до шостої",
        "Правила каси",
    }
    found_by = {arm for item in answer["items"] for arm in item["explain"]["ranks"]}
    assert found_by == {"dense", "lexical", "words", "recent"}
    assert sum("memory_areas" in statement for statement in seen) == 1
    for table in ("agent_memories", "memory_terms", "memory_events"):
        assert any(table in statement for statement in seen), table


@pytest.mark.usefixtures("_recorded")
async def test_an_item_that_is_sent_back_costs_one_reading_of_the_areas(memory: Memory):
    folder = memory.data_dir / "kb" / "shared"
    folder.mkdir(parents=True)
    (folder / "rules.md").write_text("Правила каси", encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {}))
    (item,) = (await memory.query("правила каси"))["items"]
    body = {**SOFIA, "kind": "kb", "content": {"text": item["content"]}, "meta": item["meta"]}
    token = STATEMENTS.set([])
    assert succeeded(await memory.post("/store", body))["duplicate"] is True
    seen = STATEMENTS.get()
    STATEMENTS.reset(token)
    assert sum("memory_areas" in statement for statement in seen) == 1
