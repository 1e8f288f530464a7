"""`kill -9` of the writing process and of PostgreSQL, at any moment.

Every record that was kept is in the ledger exactly once.
"""

import asyncio
import random
import sys
from pathlib import Path
from uuid import UUID

import pytest

from backends.postgres.migrate import migrate
from backends.postgres.pool import Database
from launcher.postgres import PostgresServer
from tests.support.events import RecordedEvents
from tests.support.llm.ledger_writer import LedgerWriter
from tests.support.llm.usage_child import OPTIONS
from tests.support.stores.outage import killed

TRIES = """
SELECT call_id AS id, count(*) AS tries, max(number) AS highest,
    count(*) FILTER (WHERE last) AS last, max(prompt_tokens) AS tokens
FROM llm_attempts GROUP BY call_id
"""
ROUNDS = 4
MOMENTS = random.Random(
    20
)  # the same moments each time; what the processes do at them differs enough
ID_LENGTH = 36


async def write_and_die(url: str, folder: Path, name: str, lifetime_s: float) -> set[UUID]:
    """Lets a process record for a while and kills it; returns the ids that it said were kept."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.llm.usage_child", url, str(folder), name),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(120):
            first = await child.stdout.readline()
        reading = asyncio.create_task(child.stdout.read())
        await asyncio.sleep(lifetime_s)
    finally:
        child.kill()
    lines = (first + await reading).decode().split("\n")
    await child.wait()
    return {UUID(line) for line in lines if len(line) == ID_LENGTH}


async def kill_and_restart(server: PostgresServer) -> None:
    """Kills the server while both children write, and starts it again."""
    await asyncio.sleep(MOMENTS.uniform(2.0, 3.0))
    await killed(server)
    await asyncio.sleep(MOMENTS.uniform(0.0, 0.5))
    await server.start()


async def drained(writer: LedgerWriter, folder: Path) -> None:
    async with asyncio.timeout(120):
        while writer.statistics().queued or len(list(folder.iterdir())) > 1:  # its own file
            await asyncio.sleep(0.05)


@pytest.mark.timeout(300)
async def test_every_kept_record_is_in_the_ledger_exactly_once(
    tmp_path: Path, server_folder: Path
) -> None:
    folder = tmp_path / "journal"
    kept: set[UUID] = set()
    children = 0
    async with PostgresServer(server_folder) as server:
        await migrate(server.urls.owner)
        for number in range(ROUNDS):
            lifetimes = [MOMENTS.uniform(0.2, 1.5), MOMENTS.uniform(0.2, 1.5)]
            outage = asyncio.create_task(kill_and_restart(server)) if number % 2 else None
            if outage:
                lifetimes = [MOMENTS.uniform(2.0, 4.0) for _ in lifetimes]
            writes = [
                write_and_die(server.urls.service, folder, f"{number}-{index}", life)
                for index, life in enumerate(lifetimes)
            ]
            for ids in await asyncio.gather(*writes):
                assert ids
                kept |= ids
                children += 1
            if outage:
                await outage
        database = Database(server.urls.service, events=RecordedEvents())
        await database.open()
        writer = LedgerWriter(database, folder, events=RecordedEvents(), options=OPTIONS)
        await writer.start()
        await drained(writer, folder)
        assert writer.statistics().rejected == 0
        await writer.close()
        async with database.transaction(timeout_s=30) as connection:
            rows = await (
                await connection.execute(
                    "SELECT id, request_id, prompt_tokens, attempts, outcome FROM llm_usage"
                )
            ).fetchall()
            tries = await (await connection.execute(TRIES)).fetchall()
        await database.close()
    found = {row["id"] for row in rows}
    assert len(rows) == len({row["request_id"] for row in rows}), "a call was accounted twice"
    assert all(row["request_id"].endswith(f"-{row['prompt_tokens']}") for row in rows)
    assert kept - found == set()
    lost = [row["prompt_tokens"] for row in rows if row["outcome"] == "lost"]
    assert {row["prompt_tokens"] for row in rows if row["prompt_tokens"] % 50 == 0} == {
        number for number in lost if number % 50 == 0
    }
    assert sum(number % 50 > 0 for number in lost) <= children, (
        "a call that was recorded is not lost"
    )
    expected = {
        row["id"]: (row["attempts"], row["attempts"], 1, row["prompt_tokens"]) for row in rows
    }
    assert {
        row["id"]: (row["tries"], row["highest"], row["last"], row["tokens"]) for row in tries
    } == expected
    assert len(found - kept) <= children, "more than the one record in flight at each kill"
    assert list(folder.iterdir()) == []
