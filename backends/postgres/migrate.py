"""Migrates the database schema: `python -m backends.postgres.migrate`.

DATABASE_URL must log in as the owner of the database. The files `migrations/NNNN_name.sql` are
applied in order, each in its own transaction, and recorded with their checksums in
`schema_migrations`. An advisory lock lets several processes try at once. The recorded migrations
must be the first ones of this version: a changed, missing or unknown file is refused before
anything is changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from backends.postgres.connection import conninfo
from backends.postgres.errors import translate
from backends.postgres.roles import SERVICE_ROLE, role_facts
from configs.environment import read_environment
from contracts.errors import ConfigurationError, DaarionError, DatabaseUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
MINIMUM_SERVER = 150000
LOCK_KEY = 0x6461_6172_696F_6E  # "daarion"; advisory locks are per database
LOCK_WAIT = "60s"
STATEMENT_LOCK_WAIT = "5s"

CREATE_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
READ_LEDGER = "SELECT version, name, checksum FROM schema_migrations ORDER BY version"
WRITE_LEDGER = """
INSERT INTO schema_migrations (version, name, checksum)
VALUES (%(version)s, %(name)s, %(checksum)s)
"""
LOCK = "SELECT set_config('lock_timeout', %(wait)s, false), pg_advisory_lock(%(key)s)"
SET_LOCK_WAIT = "SELECT set_config('lock_timeout', %(wait)s, false)"
ROLE_FACTS = """
SELECT service.oid IS NOT NULL AS present,
       coalesce(
           service.rolsuper OR service.rolbypassrls OR service.rolcreaterole, false
       ) AS too_strong,
       coalesce(pg_has_role(current_user, service.oid, %(set_right)s), false) AS granted,
       current_user AS name
FROM (SELECT) AS one LEFT JOIN pg_roles AS service ON service.rolname = %(service)s
"""
CREATE_ROLE = sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(SERVICE_ROLE))
GRANT_ROLE = sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(SERVICE_ROLE))
GRANT_LEDGER = sql.SQL("GRANT SELECT ON schema_migrations TO {}").format(
    sql.Identifier(SERVICE_ROLE)
)
GRANT_SCHEMA = "GRANT USAGE ON SCHEMA {} TO {}"


@dataclass(frozen=True)
class Migration:
    """One numbered file. `checksum` is the SHA-256 of its text, line ends normalised."""

    version: int
    name: str
    checksum: str
    statements: bytes


async def migrate(url: str, *, directory: Path = MIGRATIONS) -> list[str]:
    """Applies the missing migrations as the owner that `url` logs in as; returns their names.

    Raises:
        ConfigurationError: database and version do not fit, or the owner lacks a right.
        DatabaseUnavailable: PostgreSQL is away, or another session holds a lock for too long.
    """
    migrations = read_migrations(directory)
    try:
        connection = await psycopg.AsyncConnection.connect(
            conninfo(url), autocommit=True, row_factory=dict_row
        )
        async with connection:
            return await _migrate(connection, migrations)
    except psycopg.errors.LockNotAvailable as error:
        raise DatabaseUnavailable(
            "another session holds a lock on the schema: end it and run the migration again"
        ) from error
    except psycopg.Error as error:
        raise translate(error) from error


def read_migrations(directory: Path) -> list[Migration]:
    """Returns the numbered files of `directory` in order.

    Raises:
        ConfigurationError: a name that is not NNNN_name.sql, or numbers that are not 1, 2, 3 …
    """
    migrations = [_read(path) for path in sorted(directory.glob("*.sql"))]
    for expected, migration in enumerate(migrations, start=1):
        if migration.version != expected:
            raise ConfigurationError(
                f"migration {migration.name} should have the number {expected:04d}: "
                "number the files 1, 2, 3 … without gaps or duplicates"
            )
    return migrations


def _read(path: Path) -> Migration:
    match = FILE_NAME.fullmatch(path.name)
    if match is None:
        raise ConfigurationError(f"migration {path.name} is not named NNNN_name.sql")
    statements = path.read_bytes().replace(b"\r\n", b"\n")
    return Migration(int(match[1]), path.stem, hashlib.sha256(statements).hexdigest(), statements)


async def _migrate(
    connection: psycopg.AsyncConnection[DictRow], migrations: list[Migration]
) -> list[str]:
    if connection.info.server_version < MINIMUM_SERVER:
        raise ConfigurationError("PostgreSQL 15 or newer is needed")
    await connection.execute(LOCK, {"wait": LOCK_WAIT, "key": LOCK_KEY})
    await connection.execute(SET_LOCK_WAIT, {"wait": STATEMENT_LOCK_WAIT})
    await _prepare(connection)
    applied = await (await connection.execute(READ_LEDGER)).fetchall()
    check_history(applied, migrations)
    missing = migrations[len(applied) :]
    for migration in missing:
        await _apply(connection, migration)
    return [migration.name for migration in missing]


def check_history(applied: list[DictRow], migrations: list[Migration]) -> None:
    """Refuses a database whose history is not the beginning of `migrations`.

    Raises:
        ConfigurationError: names the first migration that does not fit.
    """
    for position, row in enumerate(applied, start=1):
        if row["version"] != position:
            raise ConfigurationError(
                f"the database lacks migration {position:04d} but has later ones: "
                "restore it from a backup"
            )
        if position > len(migrations):
            raise ConfigurationError(
                f"the database has migration {row['name']}, which this version does not know: "
                "use a newer version"
            )
        if row["checksum"] != migrations[position - 1].checksum:
            raise ConfigurationError(
                f"migration {row['name']} was changed after it was applied: "
                "restore the file and add a new one instead"
            )


async def _apply(connection: psycopg.AsyncConnection[DictRow], migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.statements)
            record = {
                "version": migration.version,
                "name": migration.name,
                "checksum": migration.checksum,
            }
            await connection.execute(WRITE_LEDGER, record)
    except psycopg.OperationalError:  # the server went away, or somebody holds a lock
        raise
    except psycopg.Error as error:
        reason = error.diag.message_primary or "the statement failed"
        raise ConfigurationError(
            f"migration {migration.name} was refused and rolled back: {reason}"
        ) from error


async def _prepare(connection: psycopg.AsyncConnection[DictRow]) -> None:
    """Creates the service role and the ledger, and grants the role access to the schema."""
    await _ensure_service_role(connection)
    row = await (await connection.execute("SELECT current_schema() AS schema")).fetchone()
    schema = row["schema"] if row else None
    if schema is None:
        raise ConfigurationError(
            "the search_path of the database's owner names no schema that exists"
        )
    try:
        async with connection.transaction():
            await connection.execute(CREATE_LEDGER)
            await connection.execute(GRANT_LEDGER)
            await connection.execute(
                sql.SQL(GRANT_SCHEMA).format(sql.Identifier(schema), sql.Identifier(SERVICE_ROLE))
            )
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the database role {connection.info.user!r} may not create tables in schema "
            f"{schema!r}: let DATABASE_URL log in as the owner of the database"
        ) from error


async def _ensure_service_role(connection: psycopg.AsyncConnection[DictRow]) -> None:
    facts = await role_facts(connection, ROLE_FACTS)
    if not facts["present"]:
        await _create_service_role(connection, facts["name"])
        facts = await role_facts(connection, ROLE_FACTS)
    if facts["too_strong"]:
        raise ConfigurationError(
            f"the role {SERVICE_ROLE} must be neither superuser nor able to bypass row security "
            "or create roles"
        )
    if not facts["granted"]:
        # For the owner's own login; services with a login of their own do not need it.
        with suppress(psycopg.errors.InsufficientPrivilege):
            await connection.execute(GRANT_ROLE)


async def _create_service_role(connection: psycopg.AsyncConnection[DictRow], name: str) -> None:
    try:
        await connection.execute(CREATE_ROLE)
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        return  # roles are shared by all databases: another migration created it
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the role {SERVICE_ROLE} is missing and {name!r} may not create it; "
            "as a superuser run: "
            f'CREATE ROLE {SERVICE_ROLE} NOLOGIN; GRANT {SERVICE_ROLE} TO "{name}"'
        ) from error


def main() -> int:
    """Runs the migrations; returns the exit code. A refusal is one line."""
    try:
        url = read_environment().database_url
        if url is None:
            raise ConfigurationError(
                "DATABASE_URL is not set: give the URL of the role that owns the database"
            )
        applied = asyncio.run(migrate(url))
    except DaarionError as error:
        sys.stderr.write(f"migrate: {error.message}\n")
        return 1
    sys.stdout.writelines(f"applied {name}\n" for name in applied)
    sys.stdout.write("the schema is up to date\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
