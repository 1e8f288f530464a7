"""Leases in PostgreSQL: one process at a time runs a periodic job."""

from __future__ import annotations

import uuid

from backends.postgres.pool import Database

ACQUIRE = """
INSERT INTO memory_leases AS lease (name, holder, until)
VALUES (%(name)s, %(holder)s, now() + make_interval(secs => %(seconds)s))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE lease.holder = excluded.holder OR lease.until < now()
RETURNING holder
"""
RELEASE = "DELETE FROM memory_leases WHERE name = %(name)s AND holder = %(holder)s"


class DatabaseLeases:
    """Implements Leases for this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._holder = uuid.uuid4().hex

    async def acquire(self, name: str, seconds: float) -> bool:
        values = {"name": name, "holder": self._holder, "seconds": seconds}
        async with self._database.transaction() as connection:
            return await (await connection.execute(ACQUIRE, values)).fetchone() is not None

    async def release(self, name: str) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(RELEASE, {"name": name, "holder": self._holder})
