"""Reads from the usage ledger what a subject has spent, to start counting a limit of money."""

from __future__ import annotations

from datetime import UTC, datetime

from backends.postgres.pool import PostgresAdapter
from contracts.llm.limits import NANO_PER_USD, SubjectKind

TIMEOUT_S = 10.0
SPENT = """
SELECT recorder, sum(cost_usd) AS spent FROM llm_spending
WHERE kind = %(kind)s AND subject = %(subject)s AND day >= %(since)s AND day < %(until)s
GROUP BY recorder
"""


class UsageSpending(PostgresAdapter):
    """Sums of money."""

    async def spent(
        self, kind: SubjectKind, subject: str, since: datetime, until: datetime
    ) -> dict[str, int]:
        """Returns the nano-dollars that `subject` spent, by the process that recorded them.

        Counted are the UTC days from that of `since` to the one before that of `until`.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: the ledger cannot be read now, or not in time.
        """
        async with self._database.transaction(timeout_s=TIMEOUT_S) as connection:
            values = {
                "kind": kind,
                "subject": subject,
                "since": since.astimezone(UTC).date(),
                "until": until.astimezone(UTC).date(),
            }
            rows = await (await connection.execute(SPENT, values)).fetchall()
        return {row["recorder"]: int(row["spent"] * NANO_PER_USD) for row in rows}
