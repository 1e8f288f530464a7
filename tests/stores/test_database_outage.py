"""PostgreSQL that is away, hangs, is killed or restarted: an error within two seconds, and service
again when it is back.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from backends.postgres.pool import Database
from contracts.errors import DatabaseUnavailable
from launcher.ports import free_ports
from launcher.postgres import PostgresServer
from tests.support.events import RecordedEvents
from tests.support.patience import stopwatch
from tests.support.stores.outage import frozen, killed

BOUND_S = 2.0


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def victim(module_server_folder: Path) -> AsyncIterator[PostgresServer]:
    async with PostgresServer(module_server_folder, durable=False) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def server(victim: PostgresServer) -> PostgresServer:
    """A running server of this module's own, whatever the test before did to it."""
    if victim.pid is None:
        await victim.start()
    return victim


@pytest_asyncio.fixture(loop_scope="module")
async def pool(server: PostgresServer, events: RecordedEvents) -> AsyncIterator[Database]:
    opened = Database(server.urls.service, events=events)
    await opened.open()
    yield opened
    await opened.close()


@asynccontextmanager
async def unavailable_in_time() -> AsyncIterator[None]:
    async with stopwatch() as watch:
        with pytest.raises(DatabaseUnavailable):
            yield
        assert watch.seconds < BOUND_S


async def fails_in_time(pool: Database) -> None:
    async with unavailable_in_time():
        await pool.ping()


async def test_a_pool_opens_while_postgresql_is_away_and_finds_it_later(
    server: PostgresServer, events: RecordedEvents
) -> None:
    await server.stop()
    pool = Database(server.urls.service, events=events)
    async with stopwatch() as watch:
        await pool.open()
        assert watch.seconds < BOUND_S
    await fails_in_time(pool)
    await asyncio.sleep(2.5)  # long enough for the pool's own attempts to have ended
    await server.start()
    await pool.ping()  # at the first call, without waiting for an attempt of the pool's own
    assert [name for name, _ in events.events] == [
        "database.away",
        "database.not_ready",
        "database.back",
    ]
    await pool.close()


async def test_after_a_restart_no_caller_gets_a_dead_connection(
    server: PostgresServer, pool: Database
) -> None:
    await asyncio.gather(*(slow_transaction(pool) for _ in range(6)))
    assert pool._pool.get_stats()["pool_size"] >= 2
    await server.stop()
    await server.start()
    await asyncio.gather(*(pool.ping() for _ in range(20)))


async def test_postgresql_stops_in_the_middle_of_a_transaction(
    server: PostgresServer, pool: Database
) -> None:
    async with unavailable_in_time(), pool.transaction() as connection:
        await connection.execute("SELECT 1")
        await server.stop()
        await connection.execute("SELECT 1")
    await asyncio.gather(*(fails_in_time(pool) for _ in range(4)))


async def test_postgresql_is_killed_and_started_again(
    server: PostgresServer, pool: Database
) -> None:
    await killed(server)
    await fails_in_time(pool)
    await server.start()
    await pool.ping()


async def test_a_frozen_server_is_given_up_in_time_by_each_of_many_callers(
    server: PostgresServer, pool: Database
) -> None:
    with frozen(server):
        await asyncio.gather(*(fails_in_time(pool) for _ in range(12)))
        await fails_in_time(pool)
    await pool.ping()


async def test_a_server_that_freezes_in_the_middle_of_a_transaction(
    server: PostgresServer, pool: Database
) -> None:
    async def freeze_then_ask() -> None:
        async with pool.transaction() as connection:
            await connection.execute("SELECT 1")
            stack.enter_context(frozen(server))
            await connection.execute("SELECT 1")

    with ExitStack() as stack:
        async with unavailable_in_time():
            await freeze_then_ask()
    await pool.ping()


async def test_a_server_that_freezes_before_the_commit(
    server: PostgresServer, pool: Database
) -> None:
    async def freeze_then_commit() -> None:
        async with pool.transaction() as connection:
            await connection.execute("SELECT 1")
            stack.enter_context(frozen(server))

    with ExitStack() as stack:
        async with unavailable_in_time():
            await freeze_then_commit()
    await pool.ping()


async def test_a_caller_that_leaves_a_frozen_server_is_free_at_once(
    server: PostgresServer, pool: Database
) -> None:
    with frozen(server):
        task = asyncio.create_task(pool.ping())
        await asyncio.sleep(0.2)
        async with stopwatch() as watch:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert watch.seconds < BOUND_S
    await pool.ping()


async def test_closing_while_the_server_is_frozen(
    server: PostgresServer, events: RecordedEvents
) -> None:
    pool = Database(server.urls.service, events=events)
    await pool.open()
    with frozen(server):
        async with stopwatch() as watch:
            await pool.close()
            assert watch.seconds < 3.0


async def test_a_port_where_nobody_listens_and_one_where_nobody_answers(
    events: RecordedEvents,
) -> None:
    async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    for port in (*free_ports(1), listener.sockets[0].getsockname()[1]):
        pool = Database(f"postgresql://nobody:nothing@127.0.0.1:{port}/none", events=events)
        async with stopwatch() as watch:
            await pool.open()
            assert watch.seconds < BOUND_S
        await fails_in_time(pool)
        await pool.close()
    listener.close()


async def test_a_wrong_password_is_an_unavailable_database(
    server: PostgresServer, events: RecordedEvents
) -> None:
    pool = Database(
        f"postgresql://daarion_service:wrong@127.0.0.1:{server.port}/daarion", events=events
    )
    await pool.open()
    with pytest.raises(DatabaseUnavailable) as raised:
        await pool.ping()
    assert "wrong" not in f"{raised.value.message}{raised.value.__cause__}"
    assert (
        events.named("database.away")[0]["reason"]
        == 'FATAL:  password authentication failed for user "daarion_service"'
    )
    await pool.close()


async def slow_transaction(pool: Database) -> None:
    async with pool.transaction() as connection:
        await connection.execute("SELECT pg_sleep(0.4)")
