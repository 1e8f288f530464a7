"""The outbox of invocations in PostgreSQL: leased to one process at a time, settled only by the one that holds the lease."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from backends.postgres.pool import Database
from backends.postgres.purging import purge_all
from backends.workspace.channels import add_events, digest, lock_channel
from contracts.workspace.channels import ClaimedInvocation

MAX_REASON_CHARS = 500
KEEP_DAYS = 7
PURGE_ROWS = 5_000
PURGE_TIMEOUT_S = 10.0

CLAIM = "SELECT * FROM messaging_claim_invocations(%(owner)s, %(at_most)s, %(lease)s)"
SETTLE = """
UPDATE invocation_outbox SET state = %(state)s, reason = %(reason)s, owner = NULL, settled_at = now()
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND state = 'pending' AND owner = %(owner)s
RETURNING 1 AS settled
"""
AGAIN = """
UPDATE invocation_outbox SET reason = %(reason)s, owner = NULL, due_at = now() + make_interval(secs => %(delay)s)
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND state = 'pending' AND owner = %(owner)s
"""
PURGE = "SELECT messaging_purge(make_interval(days => %(days)s), %(rows)s) AS removed"


class PostgresOutbox:
    """Implements the Outbox port for this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._owner = uuid.uuid4()

    async def claim(self, at_most: int, lease_s: float) -> Sequence[ClaimedInvocation]:
        """See the port."""
        values = {"owner": self._owner, "at_most": at_most, "lease": lease_s}
        async with self._database.transaction() as connection:
            rows = await (await connection.execute(CLAIM, values)).fetchall()
        return [ClaimedInvocation(**row) for row in rows]

    async def delivered(self, claimed: ClaimedInvocation) -> None:
        """See the port."""
        values = self._values(claimed, state="delivered", reason=None)
        async with self._database.transaction(microdao_id=claimed.microdao_id) as connection:
            await connection.execute(SETTLE, values)

    async def again(self, claimed: ClaimedInvocation, reason: str, delay_s: float) -> None:
        """See the port."""
        values = self._values(claimed, reason=reason[:MAX_REASON_CHARS], delay=delay_s)
        async with self._database.transaction(microdao_id=claimed.microdao_id) as connection:
            await connection.execute(AGAIN, values)

    async def failed(self, claimed: ClaimedInvocation, reason: str) -> None:
        """See the port."""
        reason = reason[:MAX_REASON_CHARS]
        values = self._values(claimed, state="failed", reason=reason, channel_id=claimed.channel_id)
        payload = {
            "message_id": claimed.message_id,
            "agent_id": claimed.agent_id,
            "attempts": claimed.attempts,
            "reason": reason,
        }
        async with self._database.transaction(microdao_id=claimed.microdao_id) as connection:
            await lock_channel(connection, values)
            if await (await connection.execute(SETTLE, values)).fetchone() is not None:
                await add_events(
                    connection,
                    values,
                    "invocation.failed",
                    {digest("failed", str(claimed.id)): payload},
                )

    async def purge(self) -> int:
        """See the port."""
        return await purge_all(self._purge_some, PURGE_ROWS)

    async def _purge_some(self) -> int:
        async with self._database.transaction(timeout_s=PURGE_TIMEOUT_S) as connection:
            row = await (
                await connection.execute(PURGE, {"days": KEEP_DAYS, "rows": PURGE_ROWS})
            ).fetchone()
        return int(row["removed"]) if row else 0

    def _values(self, claimed: ClaimedInvocation, **more: Any) -> dict[str, Any]:
        return {"microdao_id": claimed.microdao_id, "id": claimed.id, "owner": self._owner, **more}
