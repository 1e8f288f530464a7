"""The database, its two roles and its extension: statements that every start can repeat.

    daarion_owner    owns the database and its tables; runs the migrations
    daarion_service  used by the services: no superuser, bound by row security, owns nothing

The superuser is used for this set-up alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import psycopg
from psycopg import sql

OWNER = "daarion_owner"
SERVICE = "daarion_service"
DATABASE = "daarion"
_PLAIN = sql.SQL("LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION")


def url(user: str, password: str, port: int, database: str) -> str:
    """Returns a libpq URL on loopback; by SCRAM the server proves that it knows the password."""
    login = f"{quote(user)}:{quote(password, safe='')}"
    return f"postgresql://{login}@127.0.0.1:{port}/{quote(database)}?require_auth=scram-sha-256"


async def ensure_roles(superuser_url: str, passwords: Mapping[str, str]) -> None:
    """Creates both roles, or resets their passwords (by role) and rights."""
    async with await psycopg.AsyncConnection.connect(superuser_url, autocommit=True) as connection:
        for role in (OWNER, SERVICE):
            found = await (
                await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
            ).fetchone()
            verb = sql.SQL("ALTER ROLE") if found else sql.SQL("CREATE ROLE")
            # The verifier is computed here: neither SQL text nor server log has the password.
            verifier = connection.pgconn.encrypt_password(
                passwords[role].encode(), role.encode(), b"scram-sha-256"
            ).decode()
            await connection.execute(
                sql.SQL("{} {} {} PASSWORD {}").format(
                    verb, sql.Identifier(role), _PLAIN, sql.Literal(verifier)
                )
            )


async def ensure_database(superuser_url: str, database_superuser_url: str, database: str) -> None:
    """Creates `database` with the extension `vector`; the owner and the service role may connect.

    Args:
        superuser_url: connects to any existing database.
        database_superuser_url: the superuser's URL of `database` itself.
        database: its name.
    """
    name = sql.Identifier(database)
    async with await psycopg.AsyncConnection.connect(superuser_url, autocommit=True) as connection:
        found = await (
            await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
        ).fetchone()
        if not found:
            await connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(name, sql.Identifier(OWNER))
            )
        await connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
        await connection.execute(
            sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(name, sql.Identifier(SERVICE))
        )
    async with await psycopg.AsyncConnection.connect(
        database_superuser_url, autocommit=True
    ) as connection:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
