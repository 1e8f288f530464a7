"""Migrations on a real PostgreSQL: once, in order, by many at a time, and refused in one line when
something does not fit.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row

from backends.postgres.migrate import MIGRATIONS, migrate
from contracts.errors import ConfigurationError, DaarionError, DatabaseUnavailable
from launcher.ports import free_ports
from launcher.postgres import DatabaseUrls, PostgresServer

_numbers = count(1)


@pytest.fixture
async def empty(postgres: PostgresServer) -> DatabaseUrls:
    """A database as the launcher creates it, before any migration."""
    return await postgres.create_database(f"unmigrated_{next(_numbers)}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001_first.sql").write_text(
        "CREATE TABLE first (id int);\nINSERT INTO first VALUES (1);\n"
    )
    (tmp_path / "0002_second.sql").write_text("ALTER TABLE first ADD COLUMN name text;\n")
    return tmp_path


async def rows(url: str, statement: str) -> list[DictRow]:
    async with await psycopg.AsyncConnection.connect(
        url, autocommit=True, row_factory=dict_row
    ) as connection:
        return await (await connection.execute(statement.encode())).fetchall()


async def execute(url: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(statement.encode())


async def command(url: str | None) -> tuple[int, str, str]:
    """Runs `python -m backends.postgres.migrate`; returns its exit code, output and errors."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backends.postgres.migrate"),
        env=environment | ({"DATABASE_URL": url} if url else {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_retention_comes_to_a_large_ledger_without_locking_it(
    empty: DatabaseUrls, tmp_path: Path
) -> None:
    for file in sorted(MIGRATIONS.glob("*.sql"))[:16]:
        if file.name == "0016_retention.sql":
            await migrate(empty.owner, directory=tmp_path)
        shutil.copy(file, tmp_path)
    async with await psycopg.AsyncConnection.connect(empty.owner) as writer:
        await writer.execute("LOCK TABLE llm_usage, llm_attempts IN ROW EXCLUSIVE MODE")
        assert await migrate(empty.owner, directory=tmp_path) == ["0016_retention"]


async def test_many_processes_at_once_apply_each_file_once(empty: DatabaseUrls) -> None:
    results = await asyncio.gather(*(command(empty.owner) for _ in range(5)))
    assert [code for code, _, _ in results] == [0] * 5, results
    applied = [
        line
        for _, output, _ in results
        for line in output.splitlines()
        if line.startswith("applied ")
    ]
    assert applied == [f"applied {path.stem}" for path in sorted(MIGRATIONS.glob("*.sql"))]
    assert all(output.endswith("the schema is up to date\n") for _, output, _ in results)


async def test_unreadable_timestamps_are_repaired_by_a_migration(
    empty: DatabaseUrls, tmp_path: Path
) -> None:
    for file in sorted(MIGRATIONS.glob("*.sql"))[:12]:
        (tmp_path / file.name).write_text(file.read_text())
    await migrate(empty.owner, directory=tmp_path)
    stored = (
        "INSERT INTO memories "
        "(microdao_id, agent_id, id, kind, content, meta, created_at, fingerprint) VALUES"
    )
    moments = {
        "late": "9999-12-31 23:59:59-05",
        "early": "0001-01-01 00:00:00+05",
        "usual": "2026-05-01 12:00:00+00",
    }
    for name, moment in moments.items():
        await execute(
            empty.superuser,
            f"{stored} ('m', 'a', '{name}', 'task', '{{}}', '{{}}', '{moment}', '{name}')",
        )
    await migrate(empty.owner)
    read = await rows(
        empty.superuser,
        "SELECT id, created_at AT TIME ZONE 'UTC' AS moment FROM memories ORDER BY moment",
    )
    assert [row["id"] for row in read] == ["early", "usual", "late"]
    forced = (
        "SELECT relname FROM pg_class WHERE relforcerowsecurity "
        "AND relname = ANY ('{memories,memory_events,agent_memories}')"
    )
    assert len(await rows(empty.superuser, forced)) == 3


async def test_many_tasks_at_once(empty: DatabaseUrls, folder: Path) -> None:
    results = await asyncio.gather(*(migrate(empty.owner, directory=folder) for _ in range(8)))
    assert max(results) == ["0001_first", "0002_second"]
    assert sum(map(len, results)) == 2
    assert await rows(empty.owner, "SELECT id, name FROM first") == [{"id": 1, "name": None}]


async def test_a_later_file_is_added_to_what_is_there(empty: DatabaseUrls, folder: Path) -> None:
    await migrate(empty.owner, directory=folder)
    (folder / "0003_third.sql").write_text("CREATE TABLE third ();")
    assert await migrate(empty.owner, directory=folder) == ["0003_third"]
    assert await migrate(empty.owner, directory=folder) == []
    ledger = await rows(
        empty.owner,
        "SELECT version, name, length(checksum) AS digits FROM schema_migrations ORDER BY 1",
    )
    assert [(row["version"], row["name"], row["digits"]) for row in ledger] == [
        (1, "0001_first", 64),
        (2, "0002_second", 64),
        (3, "0003_third", 64),
    ]


async def test_line_ends_do_not_count(empty: DatabaseUrls, folder: Path) -> None:
    await migrate(empty.owner, directory=folder)
    file = folder / "0001_first.sql"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert await migrate(empty.owner, directory=folder) == []


async def test_a_failing_file_leaves_nothing_of_itself_and_keeps_the_earlier(
    empty: DatabaseUrls, folder: Path
) -> None:
    (folder / "0003_third.sql").write_text("CREATE TABLE third (); SELECT no_such_function();")
    with pytest.raises(
        ConfigurationError,
        match=r"0003_third was refused and rolled back: "
        r"function no_such_function\(\) does not exist",
    ):
        await migrate(empty.owner, directory=folder)
    assert await rows(empty.owner, "SELECT to_regclass('third') IS NULL AS gone") == [
        {"gone": True}
    ]
    (folder / "0003_third.sql").write_text("CREATE TABLE third ();")
    assert await migrate(empty.owner, directory=folder) == ["0003_third"]


async def refusal(url: str, folder: Path) -> str:
    with pytest.raises(DaarionError) as raised:
        await migrate(url, directory=folder)
    assert "\n" not in raised.value.message
    return raised.value.message


async def test_a_file_changed_after_it_was_applied(empty: DatabaseUrls, folder: Path) -> None:
    await migrate(empty.owner, directory=folder)
    (folder / "0001_first.sql").write_text("CREATE TABLE first (id bigint);")
    assert "0001_first was changed after it was applied" in await refusal(empty.owner, folder)


async def test_a_database_newer_than_the_code(empty: DatabaseUrls, folder: Path) -> None:
    await migrate(empty.owner, directory=folder)
    (folder / "0002_second.sql").unlink()
    assert "0002_second, which this version does not know" in await refusal(empty.owner, folder)


async def test_a_gap_in_the_history(empty: DatabaseUrls, folder: Path) -> None:
    await migrate(empty.owner, directory=folder)
    await execute(empty.owner, "DELETE FROM schema_migrations WHERE version = 1")
    assert "lacks migration 0001" in await refusal(empty.owner, folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("0004_gap.sql", "0004_gap should have the number 0003"),
        ("0002_double.sql", "0002_second should have the number 0003"),
        ("third.sql", "third.sql is not named NNNN_name.sql"),
    ],
)
async def test_a_file_out_of_order(
    empty: DatabaseUrls, folder: Path, name: str, reason: str
) -> None:
    (folder / name).write_text("SELECT 1;")
    assert reason in await refusal(empty.owner, folder)
    assert await rows(empty.owner, "SELECT to_regclass('first') IS NULL AS untouched") == [
        {"untouched": True}
    ]


async def test_a_table_that_somebody_holds(empty: DatabaseUrls, folder: Path) -> None:
    await migrate(empty.owner, directory=folder)
    (folder / "0003_third.sql").write_text(
        "SET LOCAL lock_timeout = '200ms'; ALTER TABLE first ADD COLUMN more text;"
    )
    async with await psycopg.AsyncConnection.connect(empty.owner) as holder:
        await holder.execute("SELECT * FROM first")
        assert "another session holds a lock" in await refusal(empty.owner, folder)
    assert await migrate(empty.owner, directory=folder) == ["0003_third"]


async def test_a_role_that_owns_nothing(empty: DatabaseUrls, folder: Path) -> None:
    assert "'daarion_service' may not create tables in schema 'public'" in await refusal(
        empty.service, folder
    )


async def test_the_service_role_has_rights_on_rows_and_on_nothing_else(
    database_urls: DatabaseUrls,
) -> None:
    owned = await rows(
        database_urls.superuser,
        "SELECT relname FROM pg_class WHERE relowner = 'daarion_service'::regrole "
        "UNION ALL SELECT nspname FROM pg_namespace WHERE nspowner = 'daarion_service'::regrole",
    )
    assert owned == []
    grants = await rows(
        database_urls.superuser,
        "SELECT table_name AS name, array_agg(privilege_type::text ORDER BY 1) AS rights, "
        "bool_or(is_grantable = 'YES') AS grantable FROM information_schema.table_privileges "
        "WHERE grantee = 'daarion_service' AND table_schema = 'public' GROUP BY 1",
    )
    tables = await rows(
        database_urls.superuser,
        "SELECT relname AS name FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') "
        "AND NOT relispartition",
    )
    assert {row["name"] for row in grants} == {row["name"] for row in tables}
    assert all(
        set(row["rights"]) <= {"SELECT", "INSERT", "UPDATE", "DELETE"} and not row["grantable"]
        for row in grants
    )
    public = await rows(
        database_urls.superuser,
        "SELECT table_name FROM information_schema.table_privileges "
        "WHERE grantee = 'PUBLIC' AND table_schema = 'public'",
    )
    assert public == []


@pytest.fixture
async def server() -> AsyncIterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="daarion-test-", ignore_cleanup_errors=True) as folder:
        async with PostgresServer(Path(folder), durable=False) as started:
            yield started


async def test_a_missing_service_role_is_created_or_asked_for(server: PostgresServer) -> None:
    urls = server.urls
    for name in ("daarion", "postgres"):
        await execute(server.urls_of(name).superuser, "DROP OWNED BY daarion_service")
    await execute(urls.superuser, "DROP ROLE daarion_service")
    assert await refusal(urls.owner, MIGRATIONS) == (
        "the role daarion_service is missing and 'daarion_owner' may not create it; "
        "as a superuser run: "
        'CREATE ROLE daarion_service NOLOGIN; GRANT daarion_service TO "daarion_owner"'
    )
    await execute(urls.superuser, "ALTER ROLE daarion_owner CREATEROLE")
    results = await asyncio.gather(*(migrate(urls.owner) for _ in range(4)))
    assert sum(map(len, results)) == len(list(MIGRATIONS.glob("*.sql")))
    facts = await rows(
        urls.superuser,
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcanlogin, "
        "pg_has_role('daarion_owner', oid, 'SET') AS reachable "
        "FROM pg_roles WHERE rolname = 'daarion_service'",
    )
    assert facts == [
        {
            "rolsuper": False,
            "rolbypassrls": False,
            "rolcreaterole": False,
            "rolcanlogin": False,
            "reachable": True,
        }
    ]


async def test_a_service_role_that_is_too_strong(server: PostgresServer) -> None:
    await execute(server.urls.superuser, "ALTER ROLE daarion_service BYPASSRLS")
    assert "neither superuser nor able to bypass row security" in await refusal(
        server.urls.owner, MIGRATIONS
    )


async def test_the_command_says_in_one_line_what_is_wrong() -> None:
    assert await command(None) == (
        1,
        "",
        "migrate: DATABASE_URL is not set: give the URL of the role that owns the database\n",
    )
    url = f"postgresql://nobody:hidden@127.0.0.1:{free_ports(1)[0]}/none"
    assert await command(url) == (1, "", "migrate: the database cannot be reached; try again\n")


async def test_postgresql_away(folder: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate(f"postgresql://nobody@127.0.0.1:{free_ports(1)[0]}/none", directory=folder)
