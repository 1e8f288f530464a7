"""Listing, deleting, erasing, exporting and importing, over HTTP."""

import json

from backends.postgres.pool import Database
from tests.support.memory.application import BORYS, SOFIA, STRANGER, Memory, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder

TABLES = [
    "memories",
    "memory_events",
    "agent_memories",
    "memory_terms",
    "memory_postings",
    "memory_queue",
    "memory_summaries",
]


async def listed(memory: Memory, tenant: dict[str, str] = SOFIA, **filters: object) -> list[str]:
    """Returns every item of a listing, read two at a time."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = succeeded(
            await memory.client.get("/items", params={**tenant, "limit": 2, **filters, **cursor})
        )
        found += [item["content"] for item in page["items"]]
        if "next_cursor" not in page:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def rows(database: Database, tenant: dict[str, str]) -> dict[str, int]:
    seen = {}
    async with database.transaction(**tenant) as connection:
        for table in TABLES:
            row = await (
                await connection.execute(
                    f"SELECT count(*) AS rows FROM {table} WHERE agent_id <> ''"
                )
            ).fetchone()
            seen[table] = row["rows"]
    return seen


async def test_pages_are_newest_first_and_complete(memory: Memory):
    for day in range(1, 8):
        await memory.store(
            f"День {day}",
            created_at=f"2026-01-0{day}T00:00:00Z",
            kind="task" if day % 2 else "conversation",
        )
    assert await listed(memory) == [f"День {day}" for day in range(7, 0, -1)]
    assert await listed(memory, kind="task") == ["День 7", "День 5", "День 3", "День 1"]
    assert await listed(memory, since="2026-01-03T00:00:00Z", until="2026-01-05T00:00:00Z") == [
        "День 4",
        "День 3",
    ]
    page = succeeded(await memory.client.get("/items", params={**SOFIA, "limit": 2}))
    other = await memory.client.get(
        "/items", params={**SOFIA, "limit": 2, "kind": "task", "cursor": page["next_cursor"]}
    )
    assert other.status_code == 400


async def test_deleted_memory_is_gone_from_every_tier(memory: Memory, database: Database):
    kept = await memory.store("Перший рядок щоденника")
    stored = await memory.store("Другий рядок щоденника")
    assert succeeded(await memory.client.delete(f"/items/{stored['id']}", params=SOFIA)) == {
        "ok": True,
        "id": stored["id"],
    }
    assert [item["id"] for item in (await memory.query("рядок щоденника"))["items"]] == [kept["id"]]
    assert await rows(database, SOFIA) == {
        table: 1 if table not in {"memory_postings", "memory_queue", "memory_summaries"} else 0
        for table in TABLES
    }
    assert (await memory.client.delete(f"/items/{stored['id']}", params=SOFIA)).status_code == 404
    again = await memory.store("Другий рядок щоденника")
    assert again["id"] != stored["id"]


async def test_erasing_a_channel(memory: Memory, database: Database):
    await memory.store("Секрет каналу", channel_id="channel:1")
    await memory.store("Інше", channel_id="channel:2")
    receipt = succeeded(await memory.post("/erase", {**SOFIA, "channel_id": "channel:1"}))
    assert (
        receipt["erased"]["memories"]
        == receipt["erased"]["events"]
        == receipt["erased"]["chunks"]
        == 1
    )
    assert receipt["id"].startswith("erasure-")
    assert await memory.contents("секрет каналу") == ["Інше"]
    assert (await rows(database, SOFIA))["memories"] == 1


async def test_erasing_an_agent_and_a_microdao(
    memory: Memory, database: Database, embedder: HashingEmbedder
):
    for tenant in (SOFIA, BORYS, STRANGER):
        await memory.store("Спільний факт", tenant)
    embedder.go_away()
    await memory.store("Ще без вектора", BORYS, wait=0)
    folder = memory.data_dir / "kb" / "microdao" / "microdao:7"
    folder.mkdir(parents=True)
    (folder / "a.md").write_text("Текст мікроДАО", encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {}))
    assert succeeded(await memory.post("/erase", SOFIA))["erased"]["memories"] == 1
    assert await memory.contents("факт", BORYS)
    receipt = succeeded(await memory.post("/erase", {"microdao_id": "microdao:7"}))
    assert receipt["erased"]["memories"] == 2
    assert receipt["erased"]["kb_documents"] == receipt["erased"]["kb_files"] == 1
    assert not folder.exists()
    for tenant in (SOFIA, BORYS):
        assert set((await rows(database, tenant)).values()) == {0}
        assert await memory.contents("факт", tenant) == []
    assert await memory.contents("факт", STRANGER) == ["Спільний факт"]
    async with database.transaction(microdao_id="microdao:7") as connection:
        kept = await (
            await connection.execute("SELECT count(*) AS receipts FROM memory_erasures")
        ).fetchone()
    assert kept == {"receipts": 2}


async def test_export_comes_back_by_import_and_only_once(memory: Memory):
    for number in range(250):
        await memory.store(
            f"Запис {number}",
            wait=0,
            meta={"n": number},
            channel_id="channel:1",
            created_at=f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z",
        )
    exported = (await memory.client.get("/export", params=SOFIA)).content
    lines = [json.loads(line) for line in exported.splitlines()]
    assert len(lines) == 251
    assert lines[-1] == {"type": "end", "count": 250}
    succeeded(await memory.post("/erase", SOFIA))
    first = succeeded(await memory.client.post("/import", params=SOFIA, content=exported))
    assert first == {"ok": True, "imported": 250, "known": 0}
    assert succeeded(await memory.client.post("/import", params=SOFIA, content=exported)) == {
        "ok": True,
        "imported": 0,
        "known": 250,
    }
    assert (await memory.client.get("/export", params=SOFIA)).content == exported
    assert (
        succeeded(await memory.client.post("/import", params=STRANGER, content=exported))[
            "imported"
        ]
        == 250
    )
    assert (await memory.contents("Запис 249", limit=1))[0].startswith("Запис")


async def test_an_import_names_the_wrong_line(memory: Memory):
    good = (
        b'{"type":"memory","id":"mem-1","kind":"task","content":{"text":"a"},'
        b'"created_at":"2026-01-01T00:00:00Z"}\n'
    )
    bad = {
        b"": "the body is empty",
        good: "is cut off after line 1",
        good + b"nonsense\n": "line 2",
        good + b'{"type":"end","count":2}\n': "line 2",
        b'{"type":"end","count":0}\n' + good: "line 2",
        good.replace(b"task", b"rumour"): "line 1",
    }
    for body, expected in bad.items():
        response = await memory.client.post("/import", params=SOFIA, content=body)
        assert response.status_code == 400, body
        assert expected in response.json()["error"]["message"]
