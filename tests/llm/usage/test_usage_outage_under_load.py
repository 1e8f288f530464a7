"""PostgreSQL is killed under load: each call is answered, and in the ledger once."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from backends.postgres.migrate import migrate
from backends.postgres.pool import Database
from launcher.postgres import PostgresServer
from tests.support.events import RecordedEvents
from tests.support.llm.ledger_writer import LedgerWriter
from tests.support.llm.proxy import CALLER, client_of, proxy_over
from tests.support.llm.upstream import ScriptedUpstream
from tests.support.llm.usage_child import OPTIONS
from tests.support.stores.outage import killed

CALLERS = 8
ANSWERS = 160
"""How many calls are answered before the outage, in it, and after it."""
BODY = {
    "model": "plain",
    "messages": [{"role": "user", "content": "раз два три"}],
    "metadata": CALLER,
}
ROWS = """
SELECT request_id, outcome, total_tokens,
    (SELECT count(*) FROM llm_attempts WHERE call_id = llm_usage.id) AS attempts
FROM llm_usage
"""


class Load:
    """Callers that call until `stop`, every other one with a stream."""

    def __init__(self, client) -> None:
        self._client = client
        self._stopping = False
        self.answered: list[str] = []

    async def call(self, name: int) -> None:
        number = 0
        while not self._stopping:
            number += 1
            request_id = f"call-{name}-{number}"
            path = "/stream" if name % 2 else "/proxy"
            response = await self._client.post(
                path, json=BODY, headers={"X-Request-Id": request_id}
            )
            assert response.status_code == 200
            assert "error" not in response.text
            self.answered.append(request_id)

    async def until_more(self, count: int) -> None:
        wanted = len(self.answered) + count
        async with asyncio.timeout(120):
            while len(self.answered) < wanted:
                await asyncio.sleep(0.01)

    def stop(self) -> None:
        self._stopping = True


@pytest.mark.timeout(300)
async def test_every_call_over_an_outage_is_answered_and_in_the_ledger_once(
    tmp_path: Path, server_folder: Path
) -> None:
    async with PostgresServer(server_folder) as server, ScriptedUpstream() as upstream:
        await migrate(server.urls.owner)
        database = Database(server.urls.service, events=RecordedEvents())
        await database.open()
        writer = LedgerWriter(
            database, tmp_path / "journal", events=RecordedEvents(), options=OPTIONS
        )
        await writer.start()
        async with (
            proxy_over(upstream.base_url) as (proxy, recorder),
            client_of(replace(proxy, usage=writer), recorder) as client,
        ):
            load = Load(client)
            async with asyncio.TaskGroup() as callers:
                for name in range(CALLERS):
                    callers.create_task(load.call(name))
                await load.until_more(ANSWERS)
                await killed(server)
                await load.until_more(ANSWERS)
                assert writer.statistics().queued >= ANSWERS - CALLERS, (
                    "without a database the journal keeps the records"
                )
                await server.start()
                await load.until_more(ANSWERS)
                load.stop()
        async with asyncio.timeout(120):
            while writer.statistics().queued:
                await asyncio.sleep(0.05)
        assert (writer.statistics().rejected, writer.statistics().dropped) == (0, 0)
        await writer.close()
        async with database.transaction(timeout_s=30) as connection:
            rows = await (await connection.execute(ROWS)).fetchall()
        await database.close()
    assert Counter(row["request_id"] for row in rows) == Counter(load.answered)
    assert len(rows) == upstream.total >= 3 * ANSWERS
    assert {(row["outcome"], row["attempts"]) for row in rows} == {("ok", 1)}
    assert all(row["total_tokens"] > 0 for row in rows)
