"""Transactions of the pool on a real PostgreSQL: commit, rollback, tenants, bounds and roles."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg import sql

from backends.postgres.pool import Database, PoolLimits
from contracts.errors import (
    ConfigurationError,
    Conflict,
    DatabaseUnavailable,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
)
from launcher.postgres import DatabaseUrls, PostgresServer
from tests.support.events import RecordedEvents
from tests.support.patience import stopwatch

INSERT = """
INSERT INTO llm_usage (
    id, request_id, occurred_at, agent_id, microdao_id, logical_model, provider, physical_model,
    prompt_tokens, completion_tokens, total_tokens, cached_tokens, reasoning_tokens, latency_ms,
    outcome, streamed, estimated, attempts
) VALUES (
    %(id)s, 'r', now(), %(agent)s, 'm', 'l', 'p', 'x', %(tokens)s, 0, 0, 0, 0, 0, 'ok', false,
    false, 1
)
"""
ROW = {"id": "00000000-0000-7000-8000-000000000001", "agent": "agent:sofia", "tokens": 1}


async def count(database: Database) -> int:
    async with database.transaction() as connection:
        row = await (await connection.execute("SELECT count(*) AS rows FROM llm_usage")).fetchone()
    assert row is not None
    return int(row["rows"])


def lost_connections(database: Database) -> int:
    stats = database._pool.get_stats()
    return stats.get("connections_lost", 0) + stats.get("returns_bad", 0)


@asynccontextmanager
async def opened(url: str, limits: PoolLimits | None = None) -> AsyncIterator[Database]:
    pool = Database(url, events=RecordedEvents(), limits=limits)
    try:
        await pool.open()
        yield pool
    finally:
        await pool.close()


async def test_a_transaction_is_committed_at_its_end(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(INSERT, ROW)
    assert await count(database) == 1


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
async def test_any_exception_rolls_back_and_passes_through(
    database: Database, error: type[BaseException]
) -> None:
    async def insert_and_fail() -> None:
        async with database.transaction() as connection:
            await connection.execute(INSERT, ROW)
            raise error

    with pytest.raises(error):
        await insert_and_fail()
    assert await count(database) == 0


async def test_a_swallowed_statement_error_is_not_called_success(database: Database) -> None:
    async def insert_and_swallow() -> None:
        async with database.transaction() as connection:
            await connection.execute(INSERT, ROW)
            with pytest.raises(psycopg.errors.UndefinedFunction):
                await connection.execute("SELECT no_such_function()")

    with pytest.raises(Internal, match="nothing was stored"):
        await insert_and_swallow()
    assert await count(database) == 0


async def test_a_savepoint_inside_works(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(INSERT, ROW)
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with connection.transaction():
                await connection.execute(INSERT, ROW)
    assert await count(database) == 1


async def test_the_tenant_is_known_inside_the_transaction_and_only_there(
    database: Database,
) -> None:
    ask = (
        "SELECT current_setting('daarion.microdao_id', true) AS microdao, "
        "current_setting('daarion.agent_id', true) AS agent"
    )
    odd = r"microdao:'7'\; DROP TABLE llm_usage --"
    async with database.transaction(microdao_id=odd, agent_id="agent:софія") as connection:
        assert await (await connection.execute(ask)).fetchone() == {
            "microdao": odd,
            "agent": "agent:софія",
        }
    for _ in range(3):
        async with database.transaction() as connection:
            row = await (await connection.execute(ask)).fetchone()
        assert row is not None
        assert not row["microdao"]
        assert not row["agent"]


@pytest.mark.parametrize("text", ["nul \0 inside", "lone \ud800 surrogate"])
async def test_text_that_postgresql_cannot_hold_is_the_callers_fault(
    database: Database, text: str
) -> None:
    with pytest.raises(InvalidRequest):
        async with database.transaction() as connection:
            await connection.execute(INSERT, {**ROW, "agent": text})
    with pytest.raises(InvalidRequest):
        async with database.transaction(microdao_id=text):
            pytest.fail("began with an impossible tenant")
    assert await count(database) == 0


async def test_a_number_out_of_range_is_the_callers_fault(database: Database) -> None:
    with pytest.raises(InvalidRequest):
        async with database.transaction() as connection:
            await connection.execute(INSERT, {**ROW, "tokens": 2**80})


async def test_a_nul_inside_json_is_the_callers_fault(database: Database) -> None:
    with pytest.raises(InvalidRequest):
        async with database.transaction() as connection:
            await connection.execute("SELECT %s::jsonb", ['{"a": "\\u0000"}'])


async def test_the_same_key_twice_is_a_conflict_and_reveals_no_value(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(INSERT, ROW)
    with pytest.raises(Conflict) as raised:
        async with database.transaction() as connection:
            await connection.execute(INSERT, ROW)
    assert ROW["id"] not in f"{raised.value.message} {raised.value.__cause__}"
    assert "llm_usage_pkey" in str(raised.value.__cause__)


async def test_a_slow_statement_is_cancelled_by_the_server(database_url: str) -> None:
    async with opened(database_url, PoolLimits(statement_timeout_s=0.2)) as pool:
        with pytest.raises(DeadlineExceeded):
            async with pool.transaction() as connection:
                await connection.execute("SELECT pg_sleep(5)")
        async with pool.transaction(timeout_s=30) as connection:
            await connection.execute("SELECT pg_sleep(0.4)")
        with pytest.raises(DeadlineExceeded):
            async with pool.transaction() as connection:
                await connection.execute("SELECT pg_sleep(5)")
        assert lost_connections(pool) == 0


async def test_a_lock_is_not_waited_for_longer_than_the_bound(database_url: str) -> None:
    async with (
        opened(database_url, PoolLimits(lock_timeout_s=0.2)) as pool,
        pool.transaction() as holder,
    ):
        await holder.execute(INSERT, ROW)
        with pytest.raises(DatabaseUnavailable, match="busy"):
            async with pool.transaction(timeout_s=30) as connection:
                await connection.execute(INSERT, ROW)


async def test_an_idle_transaction_is_ended_by_the_server(database_url: str) -> None:
    async def idle(pool: Database) -> None:
        async with pool.transaction() as connection:
            await asyncio.sleep(0.6)
            await connection.execute("SELECT 1")

    async with opened(database_url, PoolLimits(idle_in_transaction_s=0.2)) as pool:
        with pytest.raises(DatabaseUnavailable):
            await idle(pool)
        await pool.ping()


async def test_a_cancelled_task_stops_its_statement_and_the_connection_serves_on(
    database: Database,
) -> None:
    async def sleep() -> None:
        async with database.transaction(timeout_s=30) as connection:
            await connection.execute("SELECT pg_sleep(30)")

    task = asyncio.create_task(sleep())
    await asyncio.sleep(0.3)
    task.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await task
    async with database.transaction() as connection:
        row = await (
            await connection.execute(
                "SELECT count(*) AS busy FROM pg_stat_activity "
                "WHERE state = 'active' AND query LIKE '%pg_sleep(30)'"
            )
        ).fetchone()
    assert row is not None
    assert row["busy"] <= 1  # the query of this test itself
    assert lost_connections(database) == 0


async def test_the_pool_is_bounded_and_so_is_its_queue(database_url: str) -> None:
    async with opened(
        database_url, PoolLimits(max_size=2, max_waiting=3, idle_in_transaction_s=60.0)
    ) as pool:
        held, release = asyncio.Barrier(3), asyncio.Event()

        async def hold() -> None:
            async with pool.transaction() as connection:
                await connection.execute("SELECT 1")
                await held.wait()
                await release.wait()

        holders = [asyncio.create_task(hold()) for _ in range(2)]
        async with asyncio.timeout(10):
            await held.wait()
        async with stopwatch() as watch:
            answers = await asyncio.gather(*(pool.ping() for _ in range(5)), return_exceptions=True)
            assert watch.seconds < 2.0
        assert (
            sorted(type(answer).__name__ for answer in answers)
            == ["DatabaseUnavailable"] * 3 + ["Overloaded"] * 2
        )
        assert any(isinstance(answer, Overloaded) for answer in answers)
        assert pool._pool.get_stats()["pool_size"] == 2
        release.set()
        await asyncio.gather(*holders)
        await pool.ping()


async def test_many_transactions_at_once_share_few_connections(database: Database) -> None:
    async def one(number: int) -> None:
        async with database.transaction(
            timeout_s=60
        ) as connection:  # on a busy machine the last of a hundred waits long
            await connection.execute(
                INSERT, {**ROW, "id": f"00000000-0000-7000-8000-{number:012d}"}
            )

    await asyncio.gather(*(one(number) for number in range(100)))
    assert await count(database) == 100
    assert database._pool.get_stats()["pool_size"] <= PoolLimits().max_size


async def test_a_closed_pool_says_so(database_url: str) -> None:
    async with opened(database_url) as pool:
        pass
    with pytest.raises(DatabaseUnavailable):
        await pool.ping()


@pytest.mark.parametrize(
    "url", ["", "not a url", "mysql://host/db", "postgresql+asyncpg://u:secret@host/db"]
)
def test_a_url_of_something_else_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PostgreSQL URL") as raised:
        Database(url, events=RecordedEvents())
    assert "secret" not in raised.value.message


async def role_in_force(url: str) -> dict[str, str]:
    async with opened(url) as pool, pool.transaction() as connection:
        row = await (
            await connection.execute(
                "SELECT session_user AS login, current_user AS role, "
                "rolsuper OR rolbypassrls AS unbound "
                "FROM pg_roles WHERE rolname = current_user"
            )
        ).fetchone()
    assert row is not None
    assert row["unbound"] is False
    return {"login": row["login"], "role": row["role"]}


async def test_the_service_logs_in_as_itself(database_urls: DatabaseUrls) -> None:
    assert await role_in_force(database_urls.service) == {
        "login": "daarion_service",
        "role": "daarion_service",
    }


async def test_a_superuser_switches_to_the_service_role(database_urls: DatabaseUrls) -> None:
    assert await role_in_force(database_urls.superuser) == {
        "login": "postgres",
        "role": "daarion_service",
    }


async def test_the_owner_is_refused_until_it_is_granted_the_service_role(
    database_urls: DatabaseUrls,
) -> None:
    pool = Database(database_urls.owner, events=RecordedEvents())
    try:
        with pytest.raises(
            ConfigurationError,
            match=r"'daarion_owner' is not bound by row security.*log in as daarion_service",
        ):
            await pool.open()
        with pytest.raises(ConfigurationError):
            await pool.ping()
        await administer(database_urls, sql.SQL("GRANT daarion_service TO daarion_owner"))
        await pool.ping()
        assert await role_in_force(database_urls.owner) == {
            "login": "daarion_owner",
            "role": "daarion_service",
        }
    finally:
        await administer(database_urls, sql.SQL("REVOKE daarion_service FROM daarion_owner"))
        await pool.close()


@pytest.mark.parametrize("right", ["SUPERUSER", "BYPASSRLS"])
async def test_a_strong_service_role_is_refused(database_urls: DatabaseUrls, right: str) -> None:
    pool = Database(database_urls.service, events=RecordedEvents())
    try:
        await administer(database_urls, sql.SQL("ALTER ROLE daarion_service " + right))
        with pytest.raises(ConfigurationError, match="row security"):
            await pool.open()
    finally:
        await administer(database_urls, sql.SQL(f"ALTER ROLE daarion_service NO{right}"))
        await pool.close()


async def test_a_plain_role_of_the_operator_is_taken_as_it_is(
    database_urls: DatabaseUrls, postgres: PostgresServer
) -> None:
    await administer(
        database_urls,
        sql.SQL("CREATE ROLE app_login LOGIN PASSWORD 'test' IN ROLE daarion_service"),
    )
    try:
        await administer(
            database_urls,
            sql.SQL("GRANT CONNECT ON DATABASE {} TO app_login").format(name_of(database_urls)),
        )
        name = psycopg.conninfo.conninfo_to_dict(database_urls.service)["dbname"]
        url = f"postgresql://app_login:test@127.0.0.1:{postgres.port}/{name}"
        assert await role_in_force(url) == {"login": "app_login", "role": "daarion_service"}
    finally:
        await administer(
            database_urls,
            sql.SQL("REVOKE CONNECT ON DATABASE {} FROM app_login").format(name_of(database_urls)),
            sql.SQL("DROP ROLE app_login"),
        )


async def test_the_service_role_can_neither_change_the_schema_nor_the_ledger(
    database: Database,
) -> None:
    for statement in (
        "CREATE TABLE mine (id int)",
        "DROP TABLE llm_usage",
        "ALTER TABLE llm_usage ADD COLUMN extra text",
        "TRUNCATE llm_usage",
        "DELETE FROM llm_usage",
        "UPDATE llm_usage SET cost_usd = 0",
        "DELETE FROM schema_migrations",
        "ALTER ROLE daarion_service SUPERUSER",
        "SET ROLE daarion_owner",
    ):
        with pytest.raises(Internal):
            async with database.transaction() as connection:
                await connection.execute(statement.encode())


def name_of(urls: DatabaseUrls) -> sql.Identifier:
    return sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(urls.service)["dbname"]))


async def administer(urls: DatabaseUrls, *statements: sql.Composable) -> None:
    async with await psycopg.AsyncConnection.connect(urls.superuser, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement)
