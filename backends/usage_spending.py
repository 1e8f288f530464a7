"""Reads from the usage ledger what a subject has spent: for limits of money, when their bookkeeping begins."""

from __future__ import annotations

from datetime import datetime

from psycopg import sql

from backends.database import Database
from contracts.limits import NANO_PER_USD, SubjectKind

TIMEOUT_S = 10.0
COLUMNS: dict[SubjectKind, str] = {"agent": "agent_id", "microdao": "microdao_id", "credential": "credential"}
SPENT = sql.SQL("""
SELECT recorder, sum(cost_usd) AS spent FROM llm_attempts
WHERE {subject} = %(subject)s AND occurred_at >= %(since)s AND cost_usd > 0
GROUP BY recorder
""")


class UsageSpending:
    """Sums of money."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spent(self, kind: SubjectKind, subject: str, since: datetime) -> dict[str, int]:
        """Returns, by the process that recorded it, the nano-dollars that `subject` has spent since then.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: the ledger cannot be read now, or not in time.
        """
        statement = SPENT.format(subject=sql.Identifier(COLUMNS[kind]))
        async with self._database.transaction(timeout_s=TIMEOUT_S) as connection:
            rows = await (await connection.execute(statement, {"subject": subject, "since": since})).fetchall()
        return {row["recorder"]: int(row["spent"] * NANO_PER_USD) for row in rows}
