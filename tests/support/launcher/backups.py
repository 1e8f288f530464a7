"""A data directory with something in everything, and an archive of it."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from backends.postgres.migrate import migrate
from configs.environment import Environment, read_environment
from launcher.backup import back_up
from launcher.postgres import PostgresServer
from tests.support.stores.tables import fill_tables

DOCUMENTS = {
    "shared/rules.md": "Правила\n",
    "shared/deep/er/notes.txt": "",
    "shared/.hidden": "kept, too",
    "microdao/microdao%3A7/a b.md": "x" * 3_000_000,
}
SHARD = """
WITH area AS (
    UPDATE memory_areas SET microdao_id = 'microdao:7', agent_id = 'agent:a'
), opened AS (SELECT memory_open_shard('microdao:7', 'agent:a', 200) AS shard)
SELECT shard FROM opened
"""


def environment_of(folder: Path, **variables: str) -> Environment:
    return read_environment({"DAARION_DATA_DIR": str(folder), **variables})


def documents_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder / "kb")): path.read_bytes()
        for path in (folder / "kb").rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folders() -> Iterator[Path]:
    # Not below pytest's folder: another run closes that to the user that the server runs as.
    with tempfile.TemporaryDirectory(prefix="daarion-test-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def source(folders) -> Path:
    """A data directory in which every table has rows, and the knowledge base documents."""

    async def make(folder: Path) -> None:
        async with PostgresServer(folder, durable=False) as server:
            await migrate(server.urls.owner)
            await fill_tables(server.urls.superuser)
            async with await psycopg.AsyncConnection.connect(server.urls.superuser) as connection:
                (shard,) = await (await connection.execute(SHARD)).fetchone()
                await connection.execute(
                    f"INSERT INTO agent_memories_{shard} SELECT (jsonb_populate_record(one, "
                    f"jsonb_build_object('shard', {shard}, 'microdao_id', 'microdao:7', "
                    "'agent_id', 'agent:a'))).* FROM agent_memories_common AS one"
                )
                await connection.execute("SELECT memory_index_shard(%s, '', 384)", [shard])

    asyncio.run(make(folders / "source"))
    for name, text in DOCUMENTS.items():
        file = folders / "source/kb" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folders / "source"


@pytest.fixture(scope="module")
def archive(folders, source) -> Path:
    """An archive that was made while nothing ran."""
    return asyncio.run(back_up(environment_of(source), folders / "archive.zip"))


@pytest.fixture
def empty(folders) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folders, ignore_cleanup_errors=True) as name:
        yield Path(name) / "data"
