"""Areas: whose rows a tenant sees, and where they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import DictRow

from backends.postgres.pool import Database
from contracts.identity import Tenant
from contracts.memory.ports import Filters

Connection = psycopg.AsyncConnection[DictRow]

SHARED = ""
"""The empty id that no caller can send: everybody's."""

SEEN = """
SELECT microdao_id, agent_id, shard FROM memory_areas
WHERE (microdao_id = %(microdao_id)s AND agent_id IN (%(agent_id)s, '')) OR (microdao_id = '' AND agent_id = '')
"""
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


@dataclass(frozen=True, slots=True)
class Area:
    """(microdao_id, agent_id) and the shard of its own, 0 while it has none."""

    microdao_id: str
    agent_id: str
    shard: int = 0

    @property
    def identity(self) -> dict[str, str]:
        """As parameters of a statement, and of `Database.transaction`."""
        return {"microdao_id": self.microdao_id, "agent_id": self.agent_id}

    @property
    def predicate(self) -> sql.SQL:
        """The tenant predicate, written out beside row security so that indexes are chosen by it.

        The statement is given the tenant's ids as parameters; a knowledge base's empty ones are no one's input.
        """
        if self.agent_id:
            return OWN
        return OF_MICRODAO if self.microdao_id else OF_ALL

    @property
    def shards(self) -> list[int]:
        """Where its rows may be."""
        return [0, self.shard] if self.shard else [0]


def identity(tenant: Tenant) -> dict[str, Any]:
    """Returns the tenant's ids as parameters."""
    return {"microdao_id": tenant.microdao_id, "agent_id": tenant.agent_id}


async def seen_by(connection: Connection, tenant: Tenant) -> list[Area]:
    """Returns the tenant's own area and the knowledge bases that it sees and that hold something."""
    found = await (await connection.execute(SEEN, identity(tenant))).fetchall()
    areas = [Area(**row) for row in found]
    if not any(area.agent_id == tenant.agent_id for area in areas):
        areas.append(Area(tenant.microdao_id, tenant.agent_id))
    return areas


def conditions(filters: Filters) -> tuple[list[sql.Composable], dict[str, Any]]:
    """Returns the filters as conditions, and their parameters."""
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


def all_of(*parts: sql.Composable | Sequence[sql.Composable]) -> sql.Composed:
    """Joins conditions by AND."""
    flat: list[sql.Composable] = []
    for part in parts:
        flat.extend([part] if isinstance(part, sql.Composable) else part)
    return AND.join(flat)


@asynccontextmanager
async def of_tenant(
    database: Database, tenant: Tenant, *, timeout_s: float | None = None
) -> AsyncIterator[Connection]:
    """A transaction that sees this tenant alone, and the knowledge bases it may see."""
    async with database.transaction(
        microdao_id=tenant.microdao_id, agent_id=tenant.agent_id, timeout_s=timeout_s
    ) as connection:
        yield connection


@asynccontextmanager
async def working(
    database: Database, area: Area | None = None, *, timeout_s: float | None = None
) -> AsyncIterator[Connection]:
    """A transaction of background work: it sees queue and areas of all tenants, and contents of `area` alone."""
    microdao_id, agent_id = (area.microdao_id, area.agent_id) if area else (None, None)
    async with database.transaction(
        microdao_id=microdao_id, agent_id=agent_id, timeout_s=timeout_s
    ) as connection:
        await connection.execute(WORK_WITHOUT_TENANT)
        yield connection


async def lock(connection: Connection, area: Area) -> None:
    """Waits until no one else moves, merges or erases rows of this area; ends with the transaction."""
    await connection.execute(LOCK, area.identity)
