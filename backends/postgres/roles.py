"""The database role of the services, which is subject to row security."""

from __future__ import annotations

from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import DictRow

from contracts.errors import ConfigurationError

SERVICE_ROLE = "daarion_service"

# Owners of a table, and members of its owner, are exempt from its row security, too.
ROLE_FACTS = """
SELECT me.rolname AS name,
       me.rolsuper OR me.rolbypassrls AS unbound,
       service.oid IS NOT NULL AND me.oid <> service.oid
           AND pg_has_role(me.oid, service.oid, %(set_right)s) AS may_step_down,
       EXISTS (
           SELECT FROM pg_class AS owned
           JOIN pg_namespace AS namespace ON namespace.oid = owned.relnamespace
           WHERE namespace.nspname = current_schema()
             AND owned.relkind IN ('r', 'p')
             AND pg_has_role(me.oid, owned.relowner, 'USAGE')
       ) AS owns_tables
FROM pg_roles AS me
LEFT JOIN pg_roles AS service ON service.rolname = %(service)s
WHERE me.rolname = current_user
"""
SET_ROLE = sql.SQL("SET ROLE {}").format(sql.Identifier(SERVICE_ROLE))


async def assume_service_role(connection: psycopg.AsyncConnection[DictRow]) -> None:
    """Sets the service role if the login may, and checks that row security applies to the session.

    Raises:
        ConfigurationError: the role is a superuser, may bypass row security or owns tables.
    """
    facts = await role_facts(connection, ROLE_FACTS)
    if facts["may_step_down"]:
        await connection.execute(SET_ROLE)
        facts = await role_facts(connection, ROLE_FACTS)
    if facts["unbound"] or facts["owns_tables"]:
        raise ConfigurationError(_refusal(facts["name"]))


def _set_role_right(connection: psycopg.AsyncConnection[DictRow]) -> str:
    """Returns the right that `SET ROLE` needs, in `pg_has_role`'s words. Since PostgreSQL 16
    membership alone is not enough.
    """
    return "SET" if connection.info.server_version >= 160000 else "MEMBER"


async def role_facts(connection: psycopg.AsyncConnection[DictRow], query: LiteralString) -> DictRow:
    """Returns the row of `query`, which may name the service role and its right."""
    names = {"service": SERVICE_ROLE, "set_right": _set_role_right(connection)}
    facts = await (await connection.execute(query, names)).fetchone()
    assert facts is not None
    return facts


def _refusal(name: str) -> str:
    return (
        f"the database role {name!r} is not bound by row security: "
        "run `python -m backends.postgres.migrate`, then let DATABASE_URL log in as "
        f"{SERVICE_ROLE} or as a role that was granted {SERVICE_ROLE}"
    )
