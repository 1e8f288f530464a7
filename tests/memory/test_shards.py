"""A large tenant's shard: its plan and recall, filters, and that moving rows loses nothing."""

import asyncio

import numpy as np
import psycopg
import pytest
from pgvector import HalfVector
from psycopg import sql

from backends.memory.areas import AreaDirectory, background_transaction, tenant_transaction
from backends.memory.removal import remove_agent
from backends.memory.shards import MARGIN_S, ShardUpkeep
from backends.memory.vectors import PREPARE, VectorStore, dense_statement
from backends.postgres.pool import Database
from configs.memory import VectorSettings
from contracts.identity import Tenant
from contracts.llm.embeddings import EmbeddingBatch
from contracts.memory.ports import Area, Filters
from launcher.postgres import DatabaseUrls
from tests.support.events import RecordedEvents

DIMENSION = 64
VERSION = "random-1"
ROWS = 3_000
NEIGHBOURS = 40
LARGE = Tenant(microdao_id="microdao:large'%", agent_id="agent:a")
SMALL = Tenant(microdao_id="microdao:small", agent_id="agent:a")


class Rows:
    """Vectors written straight into the table, as the ingestion leaves them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._random = np.random.default_rng(5)
        self._next = 1
        self.vectors: dict[str, np.ndarray] = {}

    async def add(self, tenant: Tenant, count: int, *, equal: str | None = None) -> None:
        """Adds rows with vectors of their own, or with one vector and the text `equal`."""
        vectors = self._random.standard_normal((count, DIMENSION)).astype("<f2")
        vectors = vectors if equal is None else np.repeat(vectors[:1], count, axis=0)
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            columns = (
                "chunk_no, model_version, id, microdao_id, agent_id, channel_id, kind, created_at, "
                "embedding, content, meta"
            )
            async with connection.cursor().copy(
                f"COPY agent_memories ({columns}) FROM STDIN"
            ) as copy:
                for number, vector in enumerate(vectors, self._next):
                    name, channel = f"mem-{number}", f"channel:{number % 100}"
                    self.vectors[f"{tenant.microdao_id} {name}"] = vector.astype("<f4")
                    halves = str([float(value) for value in vector])
                    await copy.write_row(
                        (
                            number,
                            VERSION,
                            name,
                            tenant.microdao_id,
                            tenant.agent_id,
                            channel,
                            "task",
                            "2026-01-01T00:00:00Z",
                            halves,
                            equal or name,
                            "{}",
                        )
                    )
            await connection.execute(
                "INSERT INTO memory_areas AS area (microdao_id, agent_id, unsharded) "
                "VALUES (%s, %s, %s) ON CONFLICT (microdao_id, agent_id) "
                "DO UPDATE SET unsharded = area.unsharded + excluded.unsharded",
                (tenant.microdao_id, tenant.agent_id, count),
            )
        self._next += count

    def nearest(
        self, tenant: Tenant, question: np.ndarray, most: int, *, channel: str | None = None
    ) -> set[str]:
        mine = {
            key.split()[-1]: value
            for key, value in self.vectors.items()
            if key.startswith(f"{tenant.microdao_id} ")
        }
        if channel is not None:
            mine = {
                name: value
                for name, value in mine.items()
                if f"channel:{int(name.removeprefix('mem-')) % 100}" == channel
            }
        names = list(mine)
        matrix = np.stack([mine[name] / np.linalg.norm(mine[name]) for name in names])
        return {names[index] for index in np.argsort(-(matrix @ question))[:most]}

    def question(self) -> np.ndarray:
        vector = self._random.standard_normal(DIMENSION).astype("<f2").astype("<f4")
        return (vector / np.linalg.norm(vector)).astype("<f2").astype("<f4")


@pytest.fixture
async def rows(database_urls: DatabaseUrls) -> Rows:
    filled = Rows(database_urls.superuser)
    await filled.add(LARGE, ROWS)
    await filled.add(SMALL, 200)
    return filled


@pytest.fixture
def shards(database: Database, events: RecordedEvents) -> ShardUpkeep:
    """Fills a shard as soon as it is announced."""
    settings = VectorSettings(exact_rows=1_000)
    return ShardUpkeep(database, events, settings, query_timeout_s=-MARGIN_S, remainder=100)


async def plan(database: Database, tenant: Tenant) -> str:
    """Returns the plan of the statement that a search runs."""
    areas = (await AreaDirectory(database).scope_of(tenant)).areas
    async with tenant_transaction(database, tenant) as connection:
        approximate = {area.shard for area in areas if area.shard}
        if approximate:
            await connection.execute(PREPARE, {"ef": "200"})
        statement = sql.SQL("EXPLAIN ") + dense_statement(areas, approximate, [], DIMENSION)
        values = {
            **tenant.model_dump(),
            "question": HalfVector(np.ones(DIMENSION)),
            "version": VERSION,
            "limit": 100,
            "depth": 100,
        }
        found = await (await connection.execute(statement, values)).fetchall()
    return "\n".join(row["QUERY PLAN"] for row in found)


async def recall(
    database: Database, rows: Rows, tenant: Tenant, filters: Filters, **only: str
) -> float:
    hits = 0
    for _ in range(20):
        question = rows.question()
        scope = await AreaDirectory(database).scope_of(tenant)
        found = await VectorStore(database).search(
            scope, filters, EmbeddingBatch(question.tobytes(), DIMENSION, VERSION), 50
        )
        hits += len(
            {candidate.id for candidate in found[:10]} & rows.nearest(tenant, question, 10, **only)
        )
    return hits / 200


async def analyze(database_urls: DatabaseUrls) -> None:
    """Gives the planner current statistics, so that plans do not depend on autovacuum."""
    async with await psycopg.AsyncConnection.connect(
        database_urls.superuser, autocommit=True
    ) as connection:
        await connection.execute("VACUUM (ANALYZE) agent_memories")


async def shard_of(database: Database, tenant: Tenant) -> int:
    scope = await AreaDirectory(database).scope_of(tenant)
    return next(area.shard for area in scope.areas if area.agent_id)


async def test_large_tenant_is_searched_by_its_index_and_a_small_one_exactly(
    database: Database, rows: Rows, shards: ShardUpkeep, database_urls: DatabaseUrls
):
    # A small tenant's plan depends on how few of the common rows are its own.
    for number in range(NEIGHBOURS):
        await rows.add(Tenant(microdao_id=f"microdao:neighbour-{number}", agent_id="agent:a"), 100)
    assert "hnsw" not in await plan(database, LARGE)
    assert await recall(database, rows, LARGE, Filters()) == 1.0
    await shards.run()  # announces
    assert await recall(database, rows, LARGE, Filters()) == 1.0
    await shards.run()  # moves and indexes
    shard = await shard_of(database, LARGE)
    assert shard > 0
    shown = await plan(database, LARGE)
    assert f"agent_memories_{shard}_hnsw_" in shown
    assert "Seq Scan" not in shown
    assert await recall(database, rows, LARGE, Filters()) >= 0.95
    assert await shard_of(database, SMALL) == 0
    await analyze(database_urls)
    shown = await plan(database, SMALL)
    assert "hnsw" not in shown
    assert "agent_memories_common_microdao_id" in shown
    assert await recall(database, rows, SMALL, Filters()) == 1.0


async def test_filters_do_not_empty_the_answer_of_an_index(
    database: Database, rows: Rows, shards: ShardUpkeep
):
    await shards.run()
    await shards.run()
    assert (
        await recall(database, rows, LARGE, Filters(channel_id="channel:7"), channel="channel:7")
        == 1.0
    )


async def test_a_new_shard_has_the_index_by_which_neighbours_are_read(
    database: Database, rows: Rows, shards: ShardUpkeep, database_urls: DatabaseUrls
):
    await shards.run()
    async with await psycopg.AsyncConnection.connect(database_urls.superuser) as connection:
        found = await connection.execute(
            "SELECT tablename FROM pg_indexes WHERE tablename ~ '^agent_memories_(common|[0-9]+)$' "
            "AND indexdef LIKE '%(microdao_id, agent_id, channel_id, created_at, chunk_no)' "
            "ORDER BY tablename"
        )
        assert [name for (name,) in await found.fetchall()] == [
            "agent_memories_1",
            "agent_memories_common",
        ]


async def test_hundreds_of_equal_rows_are_one_candidate_of_an_index(
    database: Database, rows: Rows, shards: ShardUpkeep
):
    await rows.add(LARGE, 600, equal="те саме")
    await shards.run()
    await shards.run()
    equal = [key.split()[-1] for key in rows.vectors][-600:]
    vector = rows.vectors[f"{LARGE.microdao_id} {equal[0]}"]
    question = EmbeddingBatch(vector.tobytes(), DIMENSION, VERSION)
    scope = await AreaDirectory(database).scope_of(LARGE)
    found = [
        candidate.id
        for candidate in await VectorStore(database).search(scope, Filters(), question, 50)
    ]
    assert (len(found), found[0] in equal, len(set(found) & set(equal))) == (50, True, 1)


async def test_new_rows_are_found_before_and_after_they_move(
    database: Database, rows: Rows, shards: ShardUpkeep
):
    await shards.run()
    await shards.run()
    await rows.add(LARGE, 150)
    assert await recall(database, rows, LARGE, Filters()) >= 0.95
    await shards.run()
    assert await recall(database, rows, LARGE, Filters()) >= 0.95
    async with tenant_transaction(database, LARGE) as connection:
        found = await (
            await connection.execute(
                "SELECT shard = 0 AS common, count(*) AS rows FROM agent_memories GROUP BY 1"
            )
        ).fetchall()
    assert [(row["common"], row["rows"]) for row in found] == [(False, ROWS + 150)]


async def test_searches_during_the_move_miss_nothing(
    database: Database, rows: Rows, shards: ShardUpkeep
):
    await shards.run()
    moving = asyncio.create_task(shards.run())
    seen = []
    while not moving.done():
        seen.append(await recall(database, rows, LARGE, Filters()))
    await moving
    assert min(seen) >= 0.95


async def test_a_query_that_began_before_the_announcement_finds_everything(
    database: Database, rows: Rows, events: RecordedEvents
):
    """It searches shard 0 only, so rows stay there until its timeout is over."""
    settings = VectorSettings(exact_rows=1_000)
    shards = ShardUpkeep(database, events, settings, query_timeout_s=600, remainder=100)
    before = await AreaDirectory(database).scope_of(LARGE)
    await shards.run()
    assert await shard_of(database, LARGE) > 0
    await shards.run()
    question = rows.question()
    batch = EmbeddingBatch(question.tobytes(), DIMENSION, VERSION)
    found = await VectorStore(database).search(before, Filters(), batch, 50)
    assert {candidate.id for candidate in found[:10]} == rows.nearest(LARGE, question, 10)


async def test_erased_tenant_gives_its_shard_back(
    database: Database, rows: Rows, shards: ShardUpkeep, database_urls: DatabaseUrls
):
    await shards.run()
    await shards.run()
    shard = await shard_of(database, LARGE)
    area = Area(LARGE.microdao_id, LARGE.agent_id, shard)
    async with background_transaction(database, area, timeout_s=30) as connection:
        erased = await remove_agent(connection, area)
    assert erased["chunks"] == ROWS
    async with await psycopg.AsyncConnection.connect(database_urls.superuser) as connection:
        row = await (
            await connection.execute("SELECT to_regclass(%s)", [f"agent_memories_{shard}"])
        ).fetchone()
    assert row == (None,)
    assert await recall(database, rows, SMALL, Filters()) == 1.0


async def test_service_cannot_drop_another_tenants_shard(
    database: Database, rows: Rows, shards: ShardUpkeep
):
    await shards.run()
    await shards.run()
    for claimed in (SMALL, LARGE):
        async with database.transaction(**claimed.model_dump()) as connection:
            row = await (
                await connection.execute(
                    "SELECT memory_drop_shard(%(microdao_id)s, %(agent_id)s) AS dropped",
                    claimed.model_dump(),
                )
            ).fetchone()
            assert row == {"dropped": False}
