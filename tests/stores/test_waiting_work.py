"""What waits in PostgreSQL, of all microDAOs."""

from collections.abc import Mapping

import psycopg

from backends.postgres.pool import Database
from backends.postgres.waiting import WaitingWork

QUEUES = {
    "agent_runs_queued",
    "agent_runs_running",
    "batch_requests",
    "embeddings",
    "invocations",
    "usage_announcements",
}


async def _read(database: Database) -> tuple[Mapping[str, float], Mapping[str, float]]:
    samples = await WaitingWork(database).samples()
    waiting, ages = (
        {labels["queue"]: value for metric, labels, value in samples if metric == name}
        for name in ("daarion_waiting", "daarion_waiting_age_s")
    )
    return waiting, ages


async def test_every_queue_is_counted_also_when_it_is_empty(database: Database) -> None:
    waiting, ages = await _read(database)
    assert waiting == dict.fromkeys(QUEUES, 0)
    assert ages == dict.fromkeys(QUEUES, 0)


async def test_pieces_of_all_microdaos_count(database: Database, database_urls) -> None:
    async with await psycopg.AsyncConnection.connect(database_urls.superuser) as owner:
        for microdao in ("microdao:7", "microdao:8"):
            await owner.execute(
                "INSERT INTO memory_queue (microdao_id, agent_id, chunk_no, memory_id, queued_at) "
                "VALUES (%s, 'agent:x', 1, 'mem-1', now() - interval '90 seconds')",
                (microdao,),
            )
    waiting, ages = await _read(database)
    assert waiting["embeddings"] == 2
    assert 89 < ages["embeddings"] < 120
    assert {**waiting, "embeddings": 0} == dict.fromkeys(QUEUES, 0)
