"""The outbox of invocations in PostgreSQL: one process at a time leases an invocation and settles
it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from backends.postgres.pool import Database
from backends.postgres.purging import purge
from backends.workspace.channels import digest, lock_channel
from backends.workspace.events import add_events
from contracts.workspace.invocations import Invocation, InvocationQuery, LeasedInvocation

MAX_REASON_CHARS = 500

LEASE = "SELECT * FROM invocation_outbox_lease(%(leased_by)s, %(lease_s)s, %(at_most)s)"
SETTLE = """
UPDATE invocation_outbox
SET state = %(state)s, reason = %(reason)s, leased_by = NULL, settled_at = now()
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND leased_by = %(leased_by)s
    AND state = 'pending'
RETURNING 1 AS settled
"""
RELEASE = """
UPDATE invocation_outbox
SET reason = %(reason)s, leased_by = NULL, leased_until = now() + make_interval(secs => %(delay_s)s)
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND leased_by = %(leased_by)s
    AND state = 'pending'
"""
OF_CHANNEL = """
SELECT * FROM invocation_outbox
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s
    AND (%(state)s::text IS NULL OR state = %(state)s)
ORDER BY created_at DESC, id
LIMIT %(limit)s
"""
PURGE = "SELECT messaging_purge(%(days)s * interval '1 day', %(at_most)s) AS removed"
PURGE_MESSAGES = (
    "SELECT channel_messages_purge(%(days)s * interval '1 day', %(at_most)s) AS removed"
)


class PostgresOutbox:
    """Implements Outbox for this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leased_by = uuid.uuid4()

    async def lease(self, at_most: int, lease_s: float) -> Sequence[LeasedInvocation]:
        values = {"leased_by": self._leased_by, "at_most": at_most, "lease_s": lease_s}
        async with self._database.transaction() as connection:
            rows = await (await connection.execute(LEASE, values)).fetchall()
        return [LeasedInvocation(**row) for row in rows]

    async def delivered(self, leased: LeasedInvocation) -> None:
        values = self._values(leased, state="delivered", reason=None)
        await self._database.run(SETTLE, values, microdao_id=leased.microdao_id)

    async def release(self, leased: LeasedInvocation, reason: str, delay_s: float) -> None:
        values = self._values(leased, reason=reason[:MAX_REASON_CHARS], delay_s=delay_s)
        await self._database.run(RELEASE, values, microdao_id=leased.microdao_id)

    async def failed(self, leased: LeasedInvocation, reason: str) -> None:
        reason = reason[:MAX_REASON_CHARS]
        values = self._values(leased, state="failed", reason=reason, channel_id=leased.channel_id)
        payload = {
            "message_id": leased.message_id,
            "agent_id": leased.agent_id,
            "attempts": leased.attempts,
            "reason": reason,
        }
        async with self._database.transaction(microdao_id=leased.microdao_id) as connection:
            await lock_channel(connection, values)
            if await (await connection.execute(SETTLE, values)).fetchone() is not None:
                await add_events(
                    connection,
                    values,
                    "invocation.failed",
                    {digest("failed", str(leased.id)): payload},
                )

    async def invocations(
        self, microdao_id: str, channel_id: UUID, query: InvocationQuery
    ) -> list[Invocation]:
        values = {
            "microdao_id": microdao_id,
            "channel_id": channel_id,
            "state": query.state,
            "limit": query.limit,
        }
        rows = await self._database.run(OF_CHANNEL, values, microdao_id=microdao_id)
        return [Invocation.model_validate(row) for row in rows]

    async def purge(self, event_days: float, message_days: float | None) -> int:
        events = await purge(self._database, PURGE, days=event_days)
        return events + await purge(self._database, PURGE_MESSAGES, days=message_days)

    def _values(self, leased: LeasedInvocation, **more: Any) -> dict[str, Any]:
        return {
            "microdao_id": leased.microdao_id,
            "id": leased.id,
            "leased_by": self._leased_by,
            **more,
        }
