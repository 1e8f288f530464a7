"""One statement in one message: seen by row security, atomic, bounded, and sent again over another
connection when one was dead.
"""

from __future__ import annotations

import psycopg
import pytest

from contracts.errors import Conflict, DeadlineExceeded

WRITE = """
INSERT INTO tool_results (id, microdao_id, body, expires_at)
VALUES (%(id)s, %(of)s, 'x', now())
RETURNING id
"""


async def test_returns_rows_and_leaves_no_tenant_behind(database):
    seen = (
        "SELECT current_setting('daarion.microdao_id', true) AS microdao, "
        "current_setting('daarion.agent_id', true) AS agent, %(text)s AS text"
    )
    tenant = {"microdao_id": "microdao:7", "agent_id": "agent:sofia"}
    assert await database.run(seen, {"text": "it's 100% \\ so"}, **tenant) == [
        {"microdao": "microdao:7", "agent": "agent:sofia", "text": "it's 100% \\ so"}
    ]
    async with database.transaction() as connection:
        row = await (
            await connection.execute(
                "SELECT current_setting('daarion.microdao_id', true) AS microdao"
            )
        ).fetchone()
    assert row["microdao"] in (None, "")
    assert await database.run("SELECT 1 AS n WHERE false", {}, microdao_id="microdao:7") == []


async def test_parameters_named_as_the_context_keep_their_values(database):
    statement = (
        "SELECT %(agent_id)s AS agent, %(microdao_id)s AS other, "
        "current_setting('daarion.microdao_id', true) AS microdao"
    )
    found = await database.run(
        statement,
        {"agent_id": "agent:sofia", "microdao_id": "microdao:8"},
        microdao_id="microdao:7",
    )
    assert found == [{"agent": "agent:sofia", "other": "microdao:8", "microdao": "microdao:7"}]


async def test_errors_are_translated_and_the_connection_stays_usable(database):
    values = {"id": "00000000-0000-0000-0000-000000000001", "of": "microdao:7"}
    with pytest.raises(Conflict):  # there is no such call
        await database.run(WRITE, values, microdao_id="microdao:7")
    with pytest.raises(DeadlineExceeded):
        await database.run("SELECT pg_sleep(30)", {}, microdao_id="microdao:7")
    assert await database.run("SELECT 1 AS n", {}, microdao_id="microdao:7") == [{"n": 1}]


async def test_a_statement_may_have_more_time(database):
    slow, tenant = "SELECT 1 AS n FROM pg_sleep(1.6)", {"microdao_id": "microdao:7"}
    with pytest.raises(DeadlineExceeded):
        await database.run(slow, {}, **tenant)
    assert await database.run(slow, {}, **tenant, timeout_s=4.0) == [{"n": 1}]


async def test_a_dead_connection_is_replaced(database, postgres):
    await database.run("SELECT 1 AS n", {}, microdao_id="microdao:7")
    async with await psycopg.AsyncConnection.connect(
        postgres.urls_of("postgres").superuser, autocommit=True
    ) as superuser:
        killed = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE usename = 'daarion_service' AND datname LIKE 'test%'"
        )
        assert (await (await superuser.execute(killed)).fetchone())[0] >= 1
    assert await database.run("SELECT 1 AS n", {}, microdao_id="microdao:7") == [{"n": 1}]
