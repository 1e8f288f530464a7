"""Live events of channels in PostgreSQL: steps of runs, failed invocations, and the messages.

Each statement names the tenant, and row security checks it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

import orjson
from psycopg.rows import DictRow

from backends.postgres.pool import PostgresAdapter
from backends.workspace.channels import Connection, digest, is_member, lock_channel
from contracts.errors import Forbidden
from contracts.workspace.events import ChannelEvent, RunSteps
from contracts.workspace.messages import Message

POSITIONS = "SELECT id, position FROM messaging_positions(%(channel_ids)s)"
NEW_KEYS = """
SELECT key FROM unnest(%(keys)s::bytea[]) AS key
WHERE NOT EXISTS (
    SELECT FROM channel_events
    WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND event_key = key
)
"""
INSERT_EVENTS = """
WITH moved AS (
    UPDATE channels
    SET position = position + %(count)s,
        last_at = greatest(clock_timestamp(), last_at + interval '1 microsecond')
    WHERE microdao_id = %(microdao_id)s AND id = %(channel_id)s
    RETURNING position, last_at
)
INSERT INTO channel_events (
    microdao_id, channel_id, position, kind, event_key, payload, created_at
)
SELECT
    %(microdao_id)s, %(channel_id)s, moved.position - %(count)s + given.place, %(kind)s,
    given.key, given.payload, moved.last_at
FROM moved,
    unnest(%(keys)s::bytea[], %(payloads)s::json[]) WITH ORDINALITY AS given (key, payload, place)
"""
# One statement, and so one snapshot: two would miss what is committed between them.
EVENTS_AFTER = """
SELECT
    position, 'message.created' AS kind, created_at, NULL AS payload,
    id, channel_id, sender_id, sender_type, body, run_id
FROM channel_messages
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND position > %(after)s
UNION ALL
SELECT position, kind, created_at, payload, NULL, channel_id, NULL, NULL, NULL, NULL
FROM channel_events
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND position > %(after)s
ORDER BY position
LIMIT %(limit)s
"""


class PostgresChannelEvents(PostgresAdapter):
    """Implements ChannelEventStore."""

    async def add_steps(self, microdao_id: str, channel_id: UUID, steps: RunSteps) -> int:
        run = {"run_id": steps.run_id, "agent_id": steps.agent_id}
        payloads = {
            digest("step", steps.agent_id, steps.run_id, str(step.index)): run | step.model_dump()
            for step in steps.steps
        }
        values = {"microdao_id": microdao_id, "channel_id": channel_id, "member_id": steps.agent_id}
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            await lock_channel(connection, values)
            if not await is_member(connection, values):
                raise Forbidden("the agent is not a member of this channel: add it first")
            return await add_events(connection, values, "run.step", payloads)

    async def positions(self, channel_ids: Collection[UUID]) -> dict[UUID, int]:
        values = {"channel_ids": list(channel_ids)}
        async with self._database.transaction() as connection:
            rows = await (await connection.execute(POSITIONS, values)).fetchall()
        return {row["id"]: row["position"] for row in rows}

    async def events(
        self, microdao_id: str, channel_id: UUID, after: int, limit: int
    ) -> list[ChannelEvent]:
        values = {
            "microdao_id": microdao_id,
            "channel_id": channel_id,
            "after": after,
            "limit": limit,
        }
        rows = await self._database.run(EVENTS_AFTER, values, microdao_id=microdao_id)
        return [_event(row) for row in rows]


async def add_events(
    connection: Connection, values: dict[str, Any], kind: str, payloads: dict[bytes, dict[str, Any]]
) -> int:
    """Adds the events whose keys the channel does not have yet; returns their number.

    Runs inside a transaction that has locked the channel. `values` name microDAO and channel.
    """
    rows = await (await connection.execute(NEW_KEYS, {**values, "keys": list(payloads)})).fetchall()
    missing = {bytes(row["key"]) for row in rows}
    new = {
        key: orjson.dumps(payload).decode() for key, payload in payloads.items() if key in missing
    }
    if new:
        added = {
            **values,
            "kind": kind,
            "count": len(new),
            "keys": list(new),
            "payloads": list(new.values()),
        }
        await connection.execute(INSERT_EVENTS, added)
    return len(new)


def _event(row: DictRow) -> ChannelEvent:
    if row["kind"] == "message.created":
        message = Message.model_validate(row).model_dump(mode="json", exclude_none=True)
        return ChannelEvent(row["position"], "message.created", message)
    payload = {**row["payload"], "created_at": row["created_at"].isoformat()}
    return ChannelEvent(row["position"], row["kind"], payload)
