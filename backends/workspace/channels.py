"""Channels, members, messages and live events in PostgreSQL. Each statement names the tenant, and row security checks it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any
from uuid import UUID

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import DictRow

from backends.postgres.cursors import read_cursor, write_cursor
from backends.postgres.pool import Database
from contracts.errors import Conflict, Forbidden, InvalidRequest, NotFound
from contracts.identity import Page, new_id
from contracts.workspace.channels import (
    MAX_AGENTS,
    MAX_MEMBERS,
    Channel,
    ChannelEvent,
    ChannelQuery,
    Invocation,
    InvocationQuery,
    Message,
    NewChannel,
    Post,
    RunSteps,
)
from contracts.workspace.messaging import sender_type

Connection = psycopg.AsyncConnection[DictRow]

TENANT = "SELECT messaging_tenant(%(channel_id)s) AS microdao_id"
POSITIONS = "SELECT id, position FROM messaging_positions(%(channel_ids)s)"
INSERT_CHANNEL = """
WITH made AS (
    INSERT INTO channels (microdao_id, id, name) VALUES (%(microdao_id)s, %(channel_id)s, %(name)s) RETURNING created_at
), joined AS (
    INSERT INTO channel_members (microdao_id, channel_id, member_id)
    SELECT %(microdao_id)s, %(channel_id)s, member FROM made, unnest(%(members)s::text[]) WITH ORDINALITY AS given (member, place)
    ORDER BY place
)
SELECT created_at FROM made
"""
MEMBERS = "ARRAY(SELECT member_id FROM channel_members WHERE channel_id = channels.id ORDER BY number) AS members"
CHANNELS = sql.SQL("""
SELECT id, microdao_id, name, created_at, {members} FROM channels
WHERE {conditions} ORDER BY created_at DESC, id DESC LIMIT %(rows)s
""")
OF_MICRODAO = sql.SQL("microdao_id = %(microdao_id)s")
WITH_ID = sql.SQL("id = %(channel_id)s")
OF_MEMBER = sql.SQL(
    "id IN (SELECT channel_id FROM channel_members WHERE microdao_id = %(microdao_id)s AND member_id = %(member_id)s)"
)
AFTER = sql.SQL("(created_at, id) < (%(after_time)s, %(after_id)s::uuid)")
ALL_CHANNELS = "SELECT * FROM messaging_all_channels(%(member_id)s, %(after_time)s, %(after_id)s::uuid, %(rows)s)"

# Whoever adds to a channel waits here for who came before.
LOCK = "SELECT FROM channels WHERE microdao_id = %(microdao_id)s AND id = %(channel_id)s FOR NO KEY UPDATE"
IS_MEMBER = "SELECT FROM channel_members WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND member_id = %(member_id)s"
COUNT_MEMBERS = """
SELECT count(*) AS members, count(*) FILTER (WHERE starts_with(member_id, 'agent:')) AS agents FROM channel_members
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s
"""
ADD_MEMBER = """
INSERT INTO channel_members (microdao_id, channel_id, member_id) VALUES (%(microdao_id)s, %(channel_id)s, %(member_id)s)
"""
REMOVE_MEMBER = """
WITH given_up AS (
    UPDATE invocation_outbox SET state = 'failed', reason = 'the agent left the channel', settled_at = now(), owner = NULL
    WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND agent_id = %(member_id)s AND state = 'pending'
)
DELETE FROM channel_members WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND member_id = %(member_id)s
RETURNING 1 AS removed
"""

MOVE = """
UPDATE channels SET position = position + %(count)s, last_at = greatest(clock_timestamp(), last_at + interval '1 microsecond')
WHERE microdao_id = %(microdao_id)s AND id = %(channel_id)s
RETURNING position, last_at
"""
FIND_BY_KEY = """
SELECT * FROM channel_messages
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND idempotency_key = %(key)s
"""
INSERT_MESSAGE = f"""
WITH moved AS ({MOVE}), stored AS (
    INSERT INTO channel_messages (
        id, microdao_id, channel_id, position, sender_id, sender_type, body, run_id, idempotency_key, fingerprint, created_at
    )
    SELECT %(id)s, %(microdao_id)s, %(channel_id)s, position, %(member_id)s, %(sender_type)s, %(text)s, %(run_id)s, %(key)s,
        %(fingerprint)s, last_at
    FROM moved
    RETURNING *
), queued AS (
    INSERT INTO invocation_outbox (id, microdao_id, channel_id, message_id, agent_id)
    SELECT gen_random_uuid(), stored.microdao_id, stored.channel_id, stored.id, member.member_id
    FROM stored JOIN channel_members AS member USING (microdao_id, channel_id)
    WHERE stored.sender_type = 'human' AND starts_with(member.member_id, 'agent:')
)
SELECT * FROM stored
"""  # noqa: S608  # constants
MESSAGES = sql.SQL("""
SELECT * FROM channel_messages WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND {condition}
ORDER BY position DESC LIMIT %(limit)s
""")
BEFORE = sql.SQL("position < %(position)s")
EVERY = sql.SQL("true")
POSITION_OF = """
SELECT position FROM channel_messages WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND id = %(before)s
"""

NEW_KEYS = """
SELECT key FROM unnest(%(keys)s::bytea[]) AS key WHERE NOT EXISTS (
    SELECT FROM channel_events WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND event_key = key
)
"""
INSERT_EVENTS = f"""
WITH moved AS ({MOVE})
INSERT INTO channel_events (microdao_id, channel_id, position, kind, event_key, payload, created_at)
SELECT %(microdao_id)s, %(channel_id)s, moved.position - %(count)s + given.place, %(kind)s, given.key, given.payload, moved.last_at
FROM moved, unnest(%(keys)s::bytea[], %(payloads)s::json[]) WITH ORDINALITY AS given (key, payload, place)
"""  # noqa: S608  # constants
# One statement, and so one snapshot: with two, what was committed between them would be passed over.
EVENTS = """
SELECT position, 'message.created' AS kind, created_at, NULL AS payload, id, channel_id, sender_id, sender_type, body, run_id
FROM channel_messages WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND position > %(after)s
UNION ALL
SELECT position, kind, created_at, payload, NULL, channel_id, NULL, NULL, NULL, NULL
FROM channel_events WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND position > %(after)s
ORDER BY position LIMIT %(limit)s
"""
INVOCATIONS = sql.SQL("""
SELECT * FROM invocation_outbox WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND {condition}
ORDER BY created_at DESC, id LIMIT %(limit)s
""")
IN_STATE = sql.SQL("state = %(state)s")


class PostgresChannels:
    """Implements the ChannelStore port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tenant(self, channel_id: UUID) -> str | None:
        """See the port."""
        async with self._database.transaction() as connection:
            row = await (await connection.execute(TENANT, {"channel_id": channel_id})).fetchone()
        return row["microdao_id"] if row else None

    async def create(self, channel: NewChannel) -> Channel:
        """See the port."""
        values = {**channel.model_dump(), "channel_id": new_id()}
        async with self._database.transaction(microdao_id=channel.microdao_id) as connection:
            row = await (await connection.execute(INSERT_CHANNEL, values)).fetchone()
        return Channel.model_validate({**values, **(row or {}), "id": values["channel_id"]})

    async def find(self, microdao_id: str, channel_id: UUID) -> Channel:
        """See the port."""
        values = {"microdao_id": microdao_id, "channel_id": channel_id, "rows": 1}
        rows = await self._channels(microdao_id, [OF_MICRODAO, WITH_ID], values)
        if not rows:
            raise no_such_channel()
        return Channel.model_validate(rows[0])

    async def page(self, query: ChannelQuery) -> Page[Channel]:
        """See the port."""
        identity = {
            "of": "channels",
            "microdao_id": query.microdao_id,
            "member_id": query.member_id,
        }
        values: dict[str, Any] = {
            **identity,
            "rows": query.limit + 1,
            "after_time": None,
            "after_id": None,
        }
        conditions = [OF_MICRODAO]
        if query.member_id is not None:
            conditions.append(OF_MEMBER)
        if query.cursor is not None:
            values["after_time"], values["after_id"] = read_cursor(query.cursor, identity)
            conditions.append(AFTER)
        if query.microdao_id is None:
            async with self._database.transaction() as connection:
                rows = await (await connection.execute(ALL_CHANNELS, values)).fetchall()
        else:
            rows = await self._channels(query.microdao_id, conditions, values)
        shown = rows[: query.limit]
        more = len(rows) > query.limit
        cursor = (
            write_cursor(shown[-1]["created_at"], str(shown[-1]["id"]), identity) if more else None
        )
        return Page(items=[Channel.model_validate(row) for row in shown], next_cursor=cursor)

    async def add_member(self, microdao_id: str, channel_id: UUID, member_id: str) -> bool:
        """See the port."""
        values = {"microdao_id": microdao_id, "channel_id": channel_id, "member_id": member_id}
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            await _lock(connection, values)
            if await _is_member(connection, values):
                return False
            count = await (await connection.execute(COUNT_MEMBERS, values)).fetchone()
            assert count is not None  # an aggregate has one row
            if count["members"] >= MAX_MEMBERS or (
                sender_type(member_id) == "agent" and count["agents"] >= MAX_AGENTS
            ):
                raise Conflict(
                    f"a channel has at most {MAX_MEMBERS} members, {MAX_AGENTS} of them agents"
                )
            await connection.execute(ADD_MEMBER, values)
        return True

    async def remove_member(self, microdao_id: str, channel_id: UUID, member_id: str) -> bool:
        """See the port."""
        values = {"microdao_id": microdao_id, "channel_id": channel_id, "member_id": member_id}
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            await _lock(connection, values)
            return await (await connection.execute(REMOVE_MEMBER, values)).fetchone() is not None

    async def post(self, microdao_id: str, post: Post) -> tuple[Message, bool]:
        """See the port."""
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
            "count": 1,
        }
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            await _lock(connection, values)
            if not await _is_member(connection, values):
                raise Forbidden("the sender is not a member of this channel: add it first")
            existing = (
                await (await connection.execute(FIND_BY_KEY, values)).fetchone()
                if post.key is not None
                else None
            )
            if existing is not None:
                if not post.lenient and bytes(existing["fingerprint"]) != values["fingerprint"]:
                    raise Conflict("this id was used for another message")
                return Message.model_validate(existing), False
            row = await (await connection.execute(INSERT_MESSAGE, values)).fetchone()
        return Message.model_validate(row), True

    async def messages(
        self, microdao_id: str, channel_id: UUID, limit: int, before: UUID | None
    ) -> list[Message]:
        """See the port."""
        values: dict[str, Any] = {
            "microdao_id": microdao_id,
            "channel_id": channel_id,
            "limit": limit,
            "before": before,
        }
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            if before is not None:
                row = await (await connection.execute(POSITION_OF, values)).fetchone()
                if row is None:
                    raise InvalidRequest("`before` is not the id of a message of this channel")
                values |= row
            statement = MESSAGES.format(condition=EVERY if before is None else BEFORE)
            rows = await (await connection.execute(statement, values)).fetchall()
        return [Message.model_validate(row) for row in rows]

    async def add_steps(self, microdao_id: str, channel_id: UUID, steps: RunSteps) -> int:
        """See the port."""
        of = {"run_id": steps.run_id, "agent_id": steps.agent_id}
        given = {
            digest("step", steps.agent_id, steps.run_id, str(step.index)): {
                **of,
                **step.model_dump(),
            }
            for step in steps.steps
        }
        values = {"microdao_id": microdao_id, "channel_id": channel_id, "member_id": steps.agent_id}
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            await _lock(connection, values)
            if not await _is_member(connection, values):
                raise Forbidden("the agent is not a member of this channel: add it first")
            return await add_events(connection, values, "run.step", given)

    async def positions(self, channel_ids: Collection[UUID]) -> dict[UUID, int]:
        """See the port."""
        async with self._database.transaction() as connection:
            rows = await (
                await connection.execute(POSITIONS, {"channel_ids": list(channel_ids)})
            ).fetchall()
        return {row["id"]: row["position"] for row in rows}

    async def events(
        self, microdao_id: str, channel_id: UUID, after: int, limit: int
    ) -> list[ChannelEvent]:
        """See the port."""
        values = {
            "microdao_id": microdao_id,
            "channel_id": channel_id,
            "after": after,
            "limit": limit,
        }
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            rows = await (await connection.execute(EVENTS, values)).fetchall()
        return [_event(row) for row in rows]

    async def invocations(
        self, microdao_id: str, channel_id: UUID, query: InvocationQuery
    ) -> list[Invocation]:
        """See the port."""
        values = {
            "microdao_id": microdao_id,
            "channel_id": channel_id,
            "state": query.state,
            "limit": query.limit,
        }
        statement = INVOCATIONS.format(condition=EVERY if query.state is None else IN_STATE)
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            rows = await (await connection.execute(statement, values)).fetchall()
        return [Invocation.model_validate(row) for row in rows]

    async def _channels(
        self, microdao_id: str, conditions: list[sql.SQL], values: dict[str, Any]
    ) -> list[DictRow]:
        statement = CHANNELS.format(
            members=sql.SQL(MEMBERS), conditions=sql.SQL(" AND ").join(conditions)
        )
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            return await (await connection.execute(statement, values)).fetchall()


async def add_events(
    connection: Connection, values: dict[str, Any], kind: str, payloads: dict[bytes, dict[str, Any]]
) -> int:
    """Adds those events whose keys the channel does not have yet, inside a transaction; returns their number.

    `values` name microDAO and channel, whose row the caller has locked.
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


async def lock_channel(connection: Connection, values: dict[str, Any]) -> bool:
    """Takes the lock of the channel that `values` name until the transaction ends; returns whether there is one."""
    return await (await connection.execute(LOCK, values)).fetchone() is not None


def digest(*parts: str) -> bytes:
    """Returns a digest of texts, each apart from the next."""
    return hashlib.sha256(orjson.dumps(parts)).digest()


def no_such_channel() -> NotFound:
    """The refusal for a channel that is not there, or is another microDAO's."""
    return NotFound("no such channel")


async def _lock(connection: Connection, values: dict[str, Any]) -> None:
    if not await lock_channel(connection, values):
        raise no_such_channel()


async def _is_member(connection: Connection, values: dict[str, Any]) -> bool:
    return await (await connection.execute(IS_MEMBER, values)).fetchone() is not None


def _event(row: DictRow) -> ChannelEvent:
    if row["kind"] == "message.created":
        return ChannelEvent(
            row["position"],
            "message.created",
            Message.model_validate(row).model_dump(mode="json", exclude_none=True),
        )
    return ChannelEvent(
        row["position"],
        row["kind"],
        {**row["payload"], "created_at": row["created_at"].isoformat()},
    )
