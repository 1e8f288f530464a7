"""Leases in PostgreSQL: who works on a row, and until when.

The words are the same in every table and port. `leased_until`: from then on anybody may `lease` the
row, by a statement that skips locked ones. `leased_by`: the process that holds it, or the lease
where a process may hold several of one row; null while the row only waits until `leased_until`.
`renew` prolongs the leases that the holder names, so that one whose beginning was lost on the way
ends by itself. `release` gives the row back, at once or after a delay. Every other write names the
holder, and changes nothing once somebody else has the row.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any, LiteralString

from backends.postgres.pool import Database

LEASE_JOB = """
INSERT INTO job_leases AS job (name, leased_by, leased_until)
VALUES (%(name)s, %(leased_by)s, now() + make_interval(secs => %(lease_s)s))
ON CONFLICT (name) DO UPDATE
SET leased_by = excluded.leased_by, leased_until = excluded.leased_until
WHERE job.leased_by = excluded.leased_by OR job.leased_until < now()
RETURNING name
"""
RELEASE_JOB = "DELETE FROM job_leases WHERE name = %(name)s AND leased_by = %(leased_by)s"


async def renew(
    database: Database, statement: LiteralString, held: Collection[uuid.UUID], **values: Any
) -> set[uuid.UUID]:
    """Renews the leases of `held`; returns those that still hold.

    `statement` calls a function of the schema, which sees every microDAO, and names its column
    `held`.
    """
    async with database.transaction() as connection:
        rows = await (
            await connection.execute(statement, {"held": list(held), **values})
        ).fetchall()
    return {row["held"] for row in rows}


class DatabaseJobLeases:
    """Implements JobLeases for this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leased_by = uuid.uuid4()

    async def lease(self, name: str, lease_s: float) -> bool:
        values = {"name": name, "leased_by": self._leased_by, "lease_s": lease_s}
        async with self._database.transaction() as connection:
            return await (await connection.execute(LEASE_JOB, values)).fetchone() is not None

    async def release(self, name: str) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(RELEASE_JOB, {"name": name, "leased_by": self._leased_by})
