"""Fixtures of every suite: one real PostgreSQL for the whole run, a fresh database per test."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import hypothesis
import psycopg
import pytest
import pytest_asyncio
from psycopg import sql
from psycopg.types.json import Jsonb

from backends.postgres.migrate import migrate
from backends.postgres.pool import Database
from launcher.postgres import DatabaseUrls, PostgresServer
from tests.support.access import APPLIED, SIGNING_KEY
from tests.support.events import RecordedEvents
from tests.support.otlp import Collector

# Without deadlines, so that a busy machine fails no property; pytest bounds each test.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

TEMPLATE = "migrated_template"
_numbers = count(1)


@pytest.fixture
def events() -> RecordedEvents:
    return RecordedEvents()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[PostgresServer]:
    """A real server. Do not stop or crash it: tests that do start their own."""
    with _server_folder() as folder:
        async with PostgresServer(folder, durable=False) as server:
            owner = (await server.create_database(TEMPLATE)).owner
            await migrate(owner)
            async with await psycopg.AsyncConnection.connect(owner) as connection:
                # Applications of a test that have no directory read and write the same delegations.
                # The file counts as applied.
                await connection.execute(
                    "UPDATE access_state SET signing_key = %s, settings = %s",
                    (SIGNING_KEY, Jsonb(APPLIED)),
                )
            yield server


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A folder for a server of a test's own; a test that is run again gets another."""
    with _server_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def module_server_folder() -> Iterator[Path]:
    with _server_folder() as folder:
        yield folder


@contextmanager
def _server_folder() -> Iterator[Path]:
    # Not below pytest's own folder: a starting pytest closes that one to other accounts, and the
    # server runs as one when the tests run as root.
    with tempfile.TemporaryDirectory(prefix="daarion-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
async def database_urls(postgres: PostgresServer) -> AsyncIterator[DatabaseUrls]:
    """The URLs of an empty, migrated database of this test's own."""
    name = f"test_{next(_numbers)}"
    await copy_database(postgres, TEMPLATE, name)
    yield postgres.urls_of(name)
    await _administer(
        postgres, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    )


@pytest.fixture
def database_url(database_urls: DatabaseUrls) -> str:
    """As the services connect: neither superuser nor owner."""
    return database_urls.service


@pytest.fixture
def database_owner_url(database_urls: DatabaseUrls) -> str:
    """As the migrations connect."""
    return database_urls.owner


@pytest.fixture
async def database(database_url: str, events: RecordedEvents) -> AsyncIterator[Database]:
    """An open pool on this test's database, in the service role."""
    pool = Database(database_url, events=events)
    await pool.open()
    yield pool
    await pool.close()


async def copy_database(server: PostgresServer, template: str, name: str) -> None:
    """Creates `name` as a copy of `template`, with the rights that the launcher gives."""
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    await _administer(
        server,
        sql.SQL("CREATE DATABASE {name} TEMPLATE {template} OWNER daarion_owner").format(**names),
        sql.SQL("REVOKE ALL ON DATABASE {name} FROM PUBLIC").format(**names),
        sql.SQL("GRANT CONNECT ON DATABASE {name} TO daarion_service").format(**names),
    )


async def _administer(server: PostgresServer, *statements: sql.Composed) -> None:
    async with await psycopg.AsyncConnection.connect(
        server.urls_of("postgres").superuser, autocommit=True
    ) as connection:
        for statement in statements:
            await connection.execute(statement)
