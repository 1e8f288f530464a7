"""Transactions and predicates for the rows of one area; which areas a tenant searches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.abc import Query, QueryNoTemplate
from psycopg.rows import DictRow

from backends.postgres.pool import Database, PostgresAdapter
from contracts.identity import Tenant
from contracts.memory.ports import Area, Filters, SearchScope

Connection = psycopg.AsyncConnection[DictRow]

SHARED = ""
"""Instead of an id, which callers cannot send empty: the row belongs to a knowledge base."""

SEEN = """
SELECT microdao_id, agent_id, shard FROM memory_areas
WHERE (microdao_id = %(microdao_id)s AND agent_id IN (%(agent_id)s, ''))
   OR (microdao_id = '' AND agent_id = '')
"""
NUMBERS = "SELECT nextval('memory_chunk_no') AS number FROM generate_series(1, %(count)s)"
WORK_WITHOUT_TENANT = "SELECT set_config('daarion.worker', 'on', true)"
LOCK = (
    "SELECT pg_advisory_xact_lock(hashtextextended(%(microdao_id)s || chr(1) || %(agent_id)s, 0))"
)

CHANNEL = sql.SQL("(channel_id = %(channel_id)s OR channel_id IS NULL)")
KINDS = sql.SQL("kind = ANY(%(kinds)s)")
SINCE = sql.SQL("created_at >= %(since)s")
UNTIL = sql.SQL("created_at < %(until)s")
AND = sql.SQL(" AND ")
OWN = sql.SQL("microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s")
OF_MICRODAO = sql.SQL("microdao_id = %(microdao_id)s AND agent_id = ''")
OF_ALL = sql.SQL("microdao_id = '' AND agent_id = ''")


def predicate_of(area: Area) -> sql.SQL:
    """Returns the tenant predicate, which statements have in addition to row security.

    With the policy alone the planner knows no constant by which to choose an index. The tenant's
    ids are parameters of the statement; no caller can send a knowledge base's empty ids.
    """
    if area.agent_id:
        return OWN
    return OF_MICRODAO if area.microdao_id else OF_ALL


def identity(tenant: Tenant) -> dict[str, Any]:
    """Returns the tenant's ids as parameters."""
    return {"microdao_id": tenant.microdao_id, "agent_id": tenant.agent_id}


class AreaDirectory(PostgresAdapter):
    """Implements ScopeReader."""

    async def scope_of(self, tenant: Tenant) -> SearchScope:
        rows = await tenant_rows(self._database, tenant, SEEN, identity(tenant))
        areas = [Area(**row) for row in rows]
        if not any(area.agent_id == tenant.agent_id for area in areas):
            areas.append(Area(tenant.microdao_id, tenant.agent_id))
        return SearchScope(tenant, areas)


def conditions(filters: Filters) -> tuple[list[sql.Composable], dict[str, Any]]:
    """Returns the filters as SQL conditions with their parameters."""
    named: dict[str, tuple[sql.Composable, Any]] = {
        "channel_id": (CHANNEL, filters.channel_id),
        "kinds": (KINDS, list(filters.kinds) if filters.kinds else None),
        "since": (SINCE, filters.since),
        "until": (UNTIL, filters.until),
    }
    chosen = {name: pair for name, pair in named.items() if pair[1] is not None}
    return [condition for condition, _ in chosen.values()], {
        name: value for name, (_, value) in chosen.items()
    }


def array_of(numbers: Iterable[float]) -> str:
    """Returns the numbers as PostgreSQL writes an array; psycopg adapts a list number by number."""
    return f"{{{','.join(map(repr, numbers))}}}"


def all_of(*parts: sql.Composable | Sequence[sql.Composable]) -> sql.Composed:
    """Joins conditions by AND."""
    flat: list[sql.Composable] = []
    for part in parts:
        flat.extend([part] if isinstance(part, sql.Composable) else part)
    return AND.join(flat)


@asynccontextmanager
async def tenant_transaction(
    database: Database, tenant: Tenant, *, timeout_s: float | None = None
) -> AsyncIterator[Connection]:
    """A transaction that sees the tenant's rows and the knowledge bases that it may read."""
    async with database.transaction(
        microdao_id=tenant.microdao_id, agent_id=tenant.agent_id, timeout_s=timeout_s
    ) as connection:
        yield connection


@asynccontextmanager
async def background_transaction(
    database: Database, area: Area | None = None, *, timeout_s: float | None = None
) -> AsyncIterator[Connection]:
    """A transaction of background work: queue and areas of all tenants, contents of `area` only."""
    microdao_id, agent_id = (area.microdao_id, area.agent_id) if area else (None, None)
    async with database.transaction(
        microdao_id=microdao_id, agent_id=agent_id, timeout_s=timeout_s
    ) as connection:
        await connection.execute(WORK_WITHOUT_TENANT)
        yield connection


async def tenant_rows(
    database: Database,
    tenant: Tenant,
    statement: Query,
    values: Mapping[str, Any],
    *,
    timeout_s: float | None = None,
) -> list[DictRow]:
    """Returns the rows of one reading statement that sees what `tenant_transaction` does, in one
    round trip.
    """
    return await database.run(
        statement,
        values,
        microdao_id=tenant.microdao_id,
        agent_id=tenant.agent_id,
        timeout_s=timeout_s,
    )


async def background_rows(
    database: Database,
    statement: QueryNoTemplate,
    values: Mapping[str, Any] | None = None,
    area: Area | None = None,
    *,
    timeout_s: float | None = None,
) -> list[DictRow]:
    """Returns the rows of one statement in `background_transaction`."""
    async with background_transaction(database, area, timeout_s=timeout_s) as connection:
        return await (await connection.execute(statement, values)).fetchall()


async def chunk_numbers(connection: Connection, count: int) -> list[int]:
    """Returns the numbers of new chunks."""
    rows = await (await connection.execute(NUMBERS, {"count": count})).fetchall()
    return [row["number"] for row in rows]


async def lock(connection: Connection, area: Area) -> None:
    """Locks the area, until the transaction ends, against others that move, merge or erase rows."""
    await connection.execute(LOCK, area.identity)
