"""`GET /stats`: counts by agent, tier and kind, growth, and chunks that wait for embedding."""

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backends.memory import stats
from backends.memory.embedding_spaces import EmbeddingSpaces
from backends.postgres.pool import Database
from contracts.access.principals import Grants
from contracts.llm.embeddings import EmbeddingSpace
from deployments.memory.reembed import prune, reembed
from tests.support.access import access_control
from tests.support.events import RecordedEvents
from tests.support.memory.application import (
    BORYS,
    SOFIA,
    STRANGER,
    Memory,
    memory_application,
    succeeded,
)
from tests.support.memory.hashing_embedder import DIMENSION, HashingEmbedder

KEY = "dk_sofia".ljust(46, "x")


async def read(memory: Memory, headers: dict[str, str] | None = None, **query: Any) -> Any:
    return succeeded(await memory.client.get("/stats", params=query, headers=headers))


def tiers(agent: Any, *fields: str) -> dict[tuple[str, str], tuple[Any, ...]]:
    return {
        (row["tier"], row["kind"]): tuple(row[field] for field in fields) for row in agent["tiers"]
    }


async def test_counts_by_agent_tier_and_kind(memory: Memory):
    folder = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    folder.mkdir(parents=True)
    (folder / "plan.md").write_text("# План\nСховище\n# Ще\nКоштовності", encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {}))
    long = " ".join(f"речення{number}." for number in range(200))
    await memory.store("Кава", created_at="2024-05-01T10:00:00Z")
    await memory.store(long, created_at="2026-05-01T10:00:00Z")
    await memory.store("Задача", kind="task")
    await memory.store("Кава", BORYS)
    await memory.store("Кава", STRANGER)

    borys, sofia, base = sorted(
        (await read(memory, microdao_id="microdao:7"))["items"],
        key=lambda agent: agent.get("agent_id", "base"),
    )
    assert [borys.get("agent_id"), sofia.get("agent_id")] == ["agent:borys", "agent:sofia"]
    assert "agent_id" not in base
    assert tiers(borys, "count", "chunks", "text_bytes") == {
        ("mid-term", "conversation"): (1, 1, 8),
        ("short-term", "conversation"): (1, 0, 0),
    }
    found = tiers(sofia, "count", "first", "latest")
    both = (2, "2024-05-01T10:00:00Z", "2026-05-01T10:00:00Z")
    assert found["mid-term", "conversation"] == found["short-term", "conversation"] == both
    assert found["mid-term", "task"][0] == 1
    chunks = tiers(sofia, "chunks", "text_bytes")["mid-term", "conversation"]
    assert chunks[0] >= 4
    assert chunks[1] >= 8 + len(long.encode())
    assert tiers(base, "count", "chunks") == {("long-term", "kb"): (1, 2)}
    # Of one agent, with the knowledge base that it searches.
    of_sofia = await read(memory, **SOFIA)
    assert [agent.get("agent_id") for agent in of_sofia["items"]] == [None, "agent:sofia"]
    assert await read(memory, agent_id="agent:none", microdao_id="microdao:none") == {"items": []}


async def test_growth_counts_by_when_it_was_stored_not_by_when_it_happened(
    memory: Memory, database_owner_url: str
):
    for number in range(4):
        await memory.store(f"Спогад {number}", created_at="2020-01-01T00:00:00Z")
    async with await psycopg.AsyncConnection.connect(database_owner_url) as owner:
        await owner.execute("SELECT set_config('daarion.microdao_id', 'microdao:7', false)")
        await owner.execute("SELECT set_config('daarion.agent_id', 'agent:sofia', false)")
        for number, days in ((1, 3), (2, 20), (3, 100)):
            changed = await owner.execute(
                "UPDATE memories SET stored_at = now() - make_interval(days => %s)"
                " WHERE content->>'text' = %s",
                (days, f"Спогад {number}"),
            )
            assert changed.rowcount == 1
    (sofia,) = (await read(memory, **SOFIA))["items"]
    grown = tiers(sofia, "count", "last_24h", "last_7d", "last_30d")
    assert grown["mid-term", "conversation"] == (4, 1, 2, 3)


async def test_what_waits_for_embedding_is_counted_with_the_oldest_ones_age(
    memory: Memory, embedder: HashingEmbedder, database_owner_url: str
):
    await memory.store("Вже вбудоване", BORYS)
    embedder.go_away()
    for number in range(3):
        await memory.store(f"Чекає {number}", wait=0)
    async with await psycopg.AsyncConnection.connect(database_owner_url) as owner:
        await owner.execute("SELECT set_config('daarion.microdao_id', 'microdao:7', false)")
        await owner.execute("SELECT set_config('daarion.agent_id', 'agent:sofia', false)")
        await owner.execute(
            "UPDATE memories SET stored_at = stored_at - interval '1 hour'"
            " WHERE content->>'text' = 'Чекає 0'"
        )
    borys, sofia = (await read(memory, microdao_id="microdao:7"))["items"]
    assert (borys["waiting"], borys.get("oldest_waiting_s")) == (0, None)
    assert sofia["waiting"] == 3
    assert 3_600 <= sofia["oldest_waiting_s"] < 7_200
    assert tiers(sofia, "chunks")["mid-term", "conversation"] == (3,)  # also without a vector


async def test_a_document_that_waits_has_the_age_of_its_indexing(
    memory: Memory, embedder: HashingEmbedder
):
    embedder.go_away()
    folder = memory.data_dir / "kb" / "shared"
    folder.mkdir(parents=True)
    (folder / "plan.md").write_text("# План\nСховище", encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {}))
    (shared,) = (await read(memory))["items"]
    assert shared.keys() == {"waiting", "oldest_waiting_s", "tiers"}
    assert shared["waiting"] == 1
    assert 0 <= shared["oldest_waiting_s"] < 600


async def test_chunks_with_vectors_of_two_models_count_once(
    memory: Memory, database_url: str, events: RecordedEvents
):
    await memory.store("Кава")
    database = Database(database_url, events=events)
    await database.open()
    try:
        assert await reembed(database, HashingEmbedder("hashing-2")) == 1
        (sofia,) = (await read(memory, **SOFIA))["items"]
        assert tiers(sofia, "chunks")["mid-term", "conversation"] == (1,)
        assert await EmbeddingSpaces(database).adopt(EmbeddingSpace("hashing-2", DIMENSION))
        (sofia,) = (await read(memory, **SOFIA))["items"]
        assert tiers(sofia, "chunks")["mid-term", "conversation"] == (1,)
        assert await prune(database, "hashing-2") == 1
    finally:
        await database.close()
    (sofia,) = (await read(memory, **SOFIA))["items"]
    assert tiers(sofia, "chunks")["mid-term", "conversation"] == (1,)


async def test_pages_of_agents_cover_all_of_them_once(memory: Memory):
    tenants = [
        {"agent_id": f"agent:{agent}", "microdao_id": f"microdao:{microdao}"}
        for microdao in ("7", "8", "Ї'\\\"")
        for agent in ("а", "б", "я")
    ]
    for tenant in tenants:
        await memory.store("Кава", tenant, wait=0)
    seen, cursor = [], {}
    for _ in range(5):
        page = await read(memory, limit=2, **cursor)
        seen += [
            {"agent_id": agent["agent_id"], "microdao_id": agent["microdao_id"]}
            for agent in page["items"]
        ]
        cursor = {"cursor": page.get("next_cursor")}
    assert cursor == {"cursor": None}
    assert len(seen) == 9
    assert all(tenant in seen for tenant in tenants)


@pytest.mark.parametrize("cursor", ["x", "WzFd", "WyJhIl0=", "bnVsbA==", "WyJhXHUwMDAwIiwiYiJd"])
async def test_a_cursor_of_somebody_else_is_refused(memory: Memory, cursor: str):
    response = await memory.client.get("/stats", params={"cursor": cursor})
    assert response.status_code == 400, response.text
    assert "cursor" in response.json()["error"]["message"]


async def test_counting_is_bounded_and_says_what_to_ask_instead(
    memory: Memory, database_owner_url: str, monkeypatch: pytest.MonkeyPatch
):
    await memory.store("Кава")
    monkeypatch.setattr(stats, "TIMEOUT_S", 0.3)
    async with await psycopg.AsyncConnection.connect(database_owner_url) as owner:
        await owner.execute("LOCK TABLE memories IN ACCESS EXCLUSIVE MODE")
        response = await memory.client.get("/stats", params=SOFIA)
    assert response.status_code == 504, response.text
    assert "`agent_id`" in response.json()["error"]["message"]


async def test_counting_leaves_connections_to_queries(
    memory: Memory, database_owner_url: str, monkeypatch: pytest.MonkeyPatch
):
    await memory.store("Кава")
    monkeypatch.setattr(stats, "TIMEOUT_S", 1.0)
    most = 0
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'memories'::regclass"
    async with (
        await psycopg.AsyncConnection.connect(database_owner_url) as owner,
        await psycopg.AsyncConnection.connect(database_owner_url, autocommit=True) as other,
    ):
        await owner.execute("LOCK TABLE memories IN ACCESS EXCLUSIVE MODE")
        pages = [
            asyncio.ensure_future(memory.client.get("/stats", params=SOFIA)) for _ in range(10)
        ]
        while not all(page.done() for page in pages):
            found = await (await other.execute(waiting)).fetchone()
            most = max(most, *found or (0,))
    assert not any(page.result().is_success for page in pages)
    assert most == stats.AT_ONCE


async def test_a_key_sees_its_own_agent_and_operators_all(
    database_url: str, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
):
    access = access_control(
        "internal-secret",
        "operator-secret",
        principals={
            "sofia-bot": Grants(agents=["agent:sofia"], microdaos=["microdao:7"]),
        },
        keys={KEY: "sofia-bot"},
    )
    internal, operator = (
        {"X-Internal-Secret": f"{name}-secret"} for name in ("internal", "operator")
    )
    bearer = {"Authorization": f"Bearer {KEY}"}
    async with memory_application(
        database_url, tmp_path, embedder, events, access=access
    ) as memory:
        memory.client.headers.update(internal)
        for tenant in (SOFIA, BORYS, STRANGER):
            await memory.store("Кава", tenant, wait=0)
        del memory.client.headers["X-Internal-Secret"]
        (own,) = (await read(memory, bearer))["items"]
        assert (own["agent_id"], own["microdao_id"]) == ("agent:sofia", "microdao:7")
        for foreign in (BORYS, STRANGER):
            refused = await memory.client.get("/stats", params=foreign, headers=bearer)
            assert refused.status_code == 403, refused.text
        refused = await memory.client.get("/stats", headers=internal)
        assert refused.status_code == 403
        assert "microdao_id" in refused.json()["error"]["message"]
        assert len((await read(memory, internal, microdao_id="microdao:7"))["items"]) == 2
        assert len((await read(memory, operator))["items"]) == 3
