"""Storage quotas of microDAOs: memories over HTTP, and documents of the knowledge base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.events import RecordedEvents
from tests.support.memory.application import (
    BORYS,
    SOFIA,
    STRANGER,
    memory_application,
    succeeded,
)
from tests.support.memory.hashing_embedder import HashingEmbedder

TWO = {"microdaos": {"microdao:7": {"memories": 2, "documents": 2}}}


@pytest.fixture
def opened(
    database_url: str, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
) -> Any:
    def with_quotas(quotas: Mapping[str, Any]) -> Any:
        return memory_application(database_url, tmp_path, embedder, events, quotas=quotas)

    return with_quotas


async def store(memory: Any, text: str, tenant: dict[str, str] = SOFIA) -> Any:
    body = {**tenant, "kind": "task", "content": {"text": text}}
    return await memory.post("/store", body)


async def test_a_new_memory_over_the_quota_is_refused_and_known_ones_are_found(opened: Any):
    async with opened(TWO) as memory:
        for text, tenant in (("Перше", SOFIA), ("Друге", BORYS)):  # agents share the quota
            for _ in range(2):  # the second is known, and not counted
                assert (await store(memory, text, tenant)).status_code == 200
        refused = await store(memory, "Третє")
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["retryable"]) == (
            429,
            "over_limit",
            False,
        )
        assert "access.yaml" in error["message"]
        assert error["details"] == {
            "limit": "microdao.memories",
            "subject": "microdao:7",
            "amount": 2,
        }
        assert (await store(memory, "Перше")).json()["duplicate"] is True
        assert (await store(memory, "Чуже", STRANGER)).status_code == 200


async def test_a_quota_counts_what_was_stored_before_and_what_was_removed(
    opened: Any, monkeypatch: pytest.MonkeyPatch
):
    async with opened({}) as unlimited:
        for text in ("Перше", "Друге", "Третє"):
            assert (await store(unlimited, text)).status_code == 200
    monkeypatch.setattr("services.access.quotas.COUNT_S", 0.0)
    monkeypatch.setattr("services.access.quotas.COUNTING_SHARE", 0)
    async with opened(TWO) as memory:
        assert (await store(memory, "Четверте")).status_code == 429
        for item in succeeded(await memory.client.get("/items", params=SOFIA))["items"][:2]:
            succeeded(await memory.client.delete(f"/items/{item['id']}", params=SOFIA))
        assert (await store(memory, "Четверте")).status_code == 200
        assert (await store(memory, "П\u02bcяте")).status_code == 429


async def test_an_import_over_the_quota_stores_nothing_and_a_repeated_one_is_known(opened: Any):
    async with opened({}) as unlimited:
        for text in ("Перше", "Друге", "Третє"):
            await store(unlimited, text, STRANGER)
        exported = (await unlimited.client.get("/export", params=STRANGER)).content
    async with opened(TWO) as memory:
        refused = await memory.client.post("/import", params=SOFIA, content=exported)
        assert refused.status_code == 429
        assert succeeded(await memory.client.get("/items", params=SOFIA))["items"] == []
        two = b"".join([*exported.splitlines(True)[:2], b'{"type": "end", "count": 2}'])
        imported = await memory.client.post("/import", params=SOFIA, content=two)
        assert succeeded(imported)["imported"] == 2
        assert (await store(memory, "Четверте")).status_code == 429
        again = await memory.client.post("/import", params=STRANGER, content=exported)
        assert succeeded(again) == {"ok": True, "imported": 0, "known": 3}


async def test_documents_over_the_quota_are_reported(opened: Any):
    async with opened(TWO) as memory:
        folder = memory.data_dir / "kb" / "microdao" / "microdao:7"
        folder.mkdir(parents=True)
        for name in ("a", "b", "c"):
            (folder / f"{name}.md").write_text(f"Документ {name}", encoding="utf-8")
        report = succeeded(await memory.post("/kb/reindex", {}))
        assert (report["added"], [file["path"] for file in report["refused"]]) == (2, ["c.md"])
        assert "quota" in report["refused"][0]["reason"]
        (folder / "a.md").write_text("Змінено", encoding="utf-8")  # indexed ones are kept up
        assert succeeded(await memory.post("/kb/reindex", {}))["changed"] == 1
        (folder / "b.md").unlink()
        report = succeeded(await memory.post("/kb/reindex", {}))
        assert (report["added"], report["deleted"], report["refused"]) == (1, 1, [])
