"""How much work waits in PostgreSQL."""

from __future__ import annotations

from backends.postgres.pool import PostgresAdapter
from contracts.events import Sample

WAITING = "SELECT * FROM waiting_work()"
TIMEOUT_S = 5.0


class WaitingWork(PostgresAdapter):
    """Counts across all microDAOs."""

    async def samples(self) -> list[Sample]:
        """Returns number and age in seconds of what waits, by queue. Raises DatabaseUnavailable."""
        async with self._database.transaction(timeout_s=TIMEOUT_S) as connection:
            rows = await (await connection.execute(WAITING)).fetchall()
        return [
            (metric, {"queue": row["queue"]}, row[column])
            for row in rows
            for metric, column in (
                ("daarion_waiting", "waiting"),
                ("daarion_waiting_age_s", "age_s"),
            )
        ]
