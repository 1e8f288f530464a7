"""Another embedding model is refused while vectors would mix, and changed without downtime."""

from pathlib import Path

import pytest

from backends.postgres.pool import Database
from contracts.errors import ConfigurationError
from deployments.memory.reembed import prune, reembed
from tests.support.events import RecordedEvents
from tests.support.memory.application import SOFIA, eventually, memory_application, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder


async def versions(database: Database) -> dict[str, int]:
    async with database.transaction(**SOFIA) as connection:
        rows = await (
            await connection.execute(
                "SELECT model_version, count(*) AS rows FROM agent_memories GROUP BY 1"
            )
        ).fetchall()
    return {row["model_version"]: row["rows"] for row in rows}


async def test_another_model_is_refused(
    database_url: str, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
):
    async with memory_application(database_url, tmp_path, embedder, events) as memory:
        await memory.store("Факт")
    for other in (HashingEmbedder("other-1"), HashingEmbedder("hashing-1", 128)):
        with pytest.raises(ConfigurationError, match="hashing-1"):
            async with memory_application(database_url, tmp_path, other, events):
                pass
    async with memory_application(database_url, tmp_path, embedder, events) as memory:
        assert await memory.contents("факт") == ["Факт"]


async def test_change_without_downtime(
    database: Database,
    database_url: str,
    tmp_path: Path,
    embedder: HashingEmbedder,
    events: RecordedEvents,
):
    following = HashingEmbedder("hashing-2", 256)
    async with memory_application(database_url, tmp_path, embedder, events) as memory:
        for number in range(70):
            await memory.store(f"Факт номер {number}", wait=0)
        await memory.store("Останній факт", wait=15)
        await eventually(lambda: _only(database, {"hashing-1": 71}))
        assert await reembed(database, following) == 71
        assert await reembed(database, following) == 0
        assert "degraded" not in await memory.query("останній факт")
        await memory.store("Збережено між двома моделями", wait=15)
    async with memory_application(database_url, tmp_path, following, events) as memory:
        answer = await memory.query("останній факт", explain=True)
        assert answer["items"][0]["content"] == "Останній факт"
        assert answer["items"][0]["explain"]["ranks"]["dense"] == 1
        await eventually(lambda: _only(database, {"hashing-1": 72, "hashing-2": 72}))
        assert await prune(database, "hashing-2") == 72
        assert await versions(database) == {"hashing-2": 72}
        assert (await memory.contents("збережено між моделями"))[
            0
        ] == "Збережено між двома моделями"
        assert succeeded(await memory.post("/erase", SOFIA))["erased"]["chunks"] == 72
    with pytest.raises(ConfigurationError):
        async with memory_application(database_url, tmp_path, embedder, events):
            pass


async def _only(database: Database, wanted: dict[str, int]) -> bool:
    return await versions(database) == wanted
