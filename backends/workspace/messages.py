"""Messages in PostgreSQL, each stored once per key, with an invocation for each agent it reaches.

Each statement names the tenant, and row security checks it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import orjson

from backends.postgres.pool import PostgresAdapter
from backends.workspace.channels import digest, is_member, lock_channel
from common.tracing import current_traceparent
from contracts.errors import Conflict, Forbidden, InvalidRequest, OverLimit
from contracts.identity import new_id
from contracts.workspace.messages import Message, Post
from contracts.workspace.messaging_service import sender_type

AFTER_ALL_MESSAGES = 2**63 - 1

FIND_BY_KEY = """
SELECT * FROM channel_messages
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND idempotency_key = %(key)s
"""
INSERT_MESSAGE = """
WITH moved AS (
    UPDATE channels
    SET position = position + 1,
        last_at = greatest(clock_timestamp(), last_at + interval '1 microsecond')
    WHERE microdao_id = %(microdao_id)s AND id = %(channel_id)s
    RETURNING position, last_at
), stored AS (
    INSERT INTO channel_messages (
        id, microdao_id, channel_id, position, sender_id, sender_type, body, run_id,
        idempotency_key, fingerprint, created_at
    )
    SELECT
        %(id)s, %(microdao_id)s, %(channel_id)s, position, %(member_id)s, %(sender_type)s,
        %(text)s, %(run_id)s, %(key)s, %(fingerprint)s, last_at
    FROM moved
    RETURNING *
), queued AS (
    INSERT INTO invocation_outbox (
        id, microdao_id, channel_id, message_id, agent_id, caller, traceparent
    )
    SELECT
        gen_random_uuid(), stored.microdao_id, stored.channel_id, stored.id, member.member_id,
        %(caller)s, %(traceparent)s
    FROM stored JOIN channel_members AS member USING (microdao_id, channel_id)
    WHERE stored.sender_type = 'human' AND starts_with(member.member_id, 'agent:')
)
SELECT * FROM stored
"""
POSITION_OF = """
SELECT position FROM channel_messages
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND id = %(before)s
"""
MESSAGES_BEFORE = """
SELECT * FROM channel_messages
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND position < %(position)s
ORDER BY position DESC
LIMIT %(limit)s
"""


class PostgresMessages(PostgresAdapter):
    """Implements MessageStore."""

    async def post(
        self, microdao_id: str, post: Post, refusal: OverLimit | None = None
    ) -> tuple[Message, bool]:
        values = {
            "id": new_id(),
            "microdao_id": microdao_id,
            "channel_id": post.channel_id,
            "member_id": post.sender_id,
            "sender_type": sender_type(post.sender_id),
            "text": post.text,
            "run_id": post.run_id,
            "key": None if post.key is None else digest(post.sender_id, post.key),
            "fingerprint": digest(post.sender_id, post.text),
            "caller": None if post.caller is None else orjson.dumps(post.caller).decode(),
            "traceparent": current_traceparent(),
        }
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            await lock_channel(connection, values)
            if not await is_member(connection, values):
                raise Forbidden("the sender is not a member of this channel: add it first")
            existing = None
            if post.key is not None:
                existing = await (await connection.execute(FIND_BY_KEY, values)).fetchone()
            if existing is not None:
                if not post.lenient and bytes(existing["fingerprint"]) != values["fingerprint"]:
                    raise Conflict("this id was used for another message")
                return Message.model_validate(existing), False
            if refusal is not None:
                raise refusal
            row = await (await connection.execute(INSERT_MESSAGE, values)).fetchone()
        return Message.model_validate(row), True

    async def messages(
        self, microdao_id: str, channel_id: UUID, limit: int, before: UUID | None
    ) -> list[Message]:
        values: dict[str, Any] = {
            "microdao_id": microdao_id,
            "channel_id": channel_id,
            "limit": limit,
            "before": before,
            "position": AFTER_ALL_MESSAGES,
        }
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            if before is not None:
                row = await (await connection.execute(POSITION_OF, values)).fetchone()
                if row is None:
                    raise InvalidRequest("`before` is not the id of a message of this channel")
                values |= row
            rows = await (await connection.execute(MESSAGES_BEFORE, values)).fetchall()
        return [Message.model_validate(row) for row in rows]
