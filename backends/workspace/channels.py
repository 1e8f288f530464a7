"""Channels and their members in PostgreSQL, and what every write to a channel begins with.

Each statement names the tenant, and row security checks it.
"""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

import orjson
import psycopg
from psycopg.rows import DictRow

from backends.postgres.pages import read_page
from backends.postgres.pool import PostgresAdapter
from contracts.errors import Conflict, NotFound
from contracts.identity import Page, new_id
from contracts.workspace.channels import (
    MAX_AGENTS,
    MAX_MEMBERS,
    Channel,
    ChannelQuery,
    NewChannel,
)
from contracts.workspace.messaging_service import sender_type

Connection = psycopg.AsyncConnection[DictRow]

# Writers of one channel take turns here, so that its positions have no gaps.
LOCK = """
SELECT FROM channels
WHERE microdao_id = %(microdao_id)s AND id = %(channel_id)s
FOR NO KEY UPDATE
"""
IS_MEMBER = """
SELECT FROM channel_members
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND member_id = %(member_id)s
"""
TENANT = "SELECT messaging_tenant(%(channel_id)s) AS microdao_id"
INSERT_CHANNEL = """
WITH made AS (
    INSERT INTO channels (microdao_id, id, name)
    VALUES (%(microdao_id)s, %(channel_id)s, %(name)s)
    RETURNING created_at
), joined AS (
    INSERT INTO channel_members (microdao_id, channel_id, member_id)
    SELECT %(microdao_id)s, %(channel_id)s, member
    FROM made, unnest(%(members)s::text[]) WITH ORDINALITY AS given (member, place)
    ORDER BY place
)
SELECT created_at FROM made
"""
FIND_CHANNEL = """
SELECT id, microdao_id, name, created_at,
    ARRAY(
        SELECT member_id FROM channel_members WHERE channel_id = channels.id ORDER BY number
    ) AS members
FROM channels
WHERE microdao_id = %(microdao_id)s AND id = %(channel_id)s
"""
PAGE = """
SELECT id, microdao_id, name, created_at,
    ARRAY(
        SELECT member_id FROM channel_members WHERE channel_id = channels.id ORDER BY number
    ) AS members
FROM channels
WHERE microdao_id = %(microdao_id)s
    AND (created_at, id) < (
        coalesce(%(after_time)s::timestamptz, 'infinity'::timestamptz), %(after_id)s::uuid
    )
ORDER BY created_at DESC, id DESC
LIMIT %(rows)s
"""
# A statement of its own: it begins with the member's channels, PAGE with the microDAO's newest.
PAGE_OF_MEMBER = """
SELECT channels.id, channels.microdao_id, channels.name, channels.created_at,
    ARRAY(
        SELECT member_id FROM channel_members WHERE channel_id = channels.id ORDER BY number
    ) AS members
FROM channel_members AS own JOIN channels ON channels.id = own.channel_id
WHERE own.microdao_id = %(microdao_id)s AND own.member_id = %(member_id)s
    AND (channels.created_at, channels.id) < (
        coalesce(%(after_time)s::timestamptz, 'infinity'::timestamptz), %(after_id)s::uuid
    )
ORDER BY channels.created_at DESC, channels.id DESC
LIMIT %(rows)s
"""
PAGE_OF_ALL_MICRODAOS = """
SELECT *
FROM messaging_all_channels(%(member_id)s, %(after_time)s, %(after_id)s::uuid, %(rows)s)
"""
COUNT_MEMBERS = """
SELECT
    count(*) AS members,
    count(*) FILTER (WHERE starts_with(member_id, 'agent:')) AS agents
FROM channel_members
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s
"""
ADD_MEMBER = """
INSERT INTO channel_members (microdao_id, channel_id, member_id)
VALUES (%(microdao_id)s, %(channel_id)s, %(member_id)s)
"""
REMOVE_MEMBER = """
WITH given_up AS (
    UPDATE invocation_outbox
    SET state = 'failed', reason = 'the agent left the channel', settled_at = now(),
        leased_by = NULL
    WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s
        AND agent_id = %(member_id)s AND state = 'pending'
)
DELETE FROM channel_members
WHERE microdao_id = %(microdao_id)s AND channel_id = %(channel_id)s AND member_id = %(member_id)s
RETURNING 1 AS removed
"""


async def lock_channel(connection: Connection, values: dict[str, Any]) -> None:
    """Locks the channel that `values` name until the transaction ends. Raises NotFound."""
    if await (await connection.execute(LOCK, values)).fetchone() is None:
        raise NotFound("no such channel")


async def is_member(connection: Connection, values: dict[str, Any]) -> bool:
    """Returns whether `values["member_id"]` is a member of the channel."""
    return await (await connection.execute(IS_MEMBER, values)).fetchone() is not None


def digest(*parts: str) -> bytes:
    """Returns a digest of texts that keeps their boundaries."""
    return hashlib.sha256(orjson.dumps(parts)).digest()


class PostgresChannels(PostgresAdapter):
    """Implements ChannelStore."""

    async def tenant(self, channel_id: UUID) -> str | None:
        async with self._database.transaction() as connection:
            row = await (await connection.execute(TENANT, {"channel_id": channel_id})).fetchone()
        return row["microdao_id"] if row else None

    async def create(self, channel: NewChannel) -> Channel:
        values = {**channel.model_dump(), "channel_id": new_id()}
        async with self._database.transaction(microdao_id=channel.microdao_id) as connection:
            row = await (await connection.execute(INSERT_CHANNEL, values)).fetchone()
        return Channel.model_validate({**values, **(row or {}), "id": values["channel_id"]})

    async def find(self, microdao_id: str, channel_id: UUID) -> Channel:
        values = {"microdao_id": microdao_id, "channel_id": channel_id}
        rows = await self._database.run(FIND_CHANNEL, values, microdao_id=microdao_id)
        if not rows:
            raise NotFound("no such channel")
        return Channel.model_validate(rows[0])

    async def page(self, query: ChannelQuery) -> Page[Channel]:
        statement = PAGE if query.member_id is None else PAGE_OF_MEMBER
        if query.microdao_id is None:
            statement = PAGE_OF_ALL_MICRODAOS
        filters = {"microdao_id": query.microdao_id, "member_id": query.member_id}
        rows, cursor = await read_page(
            self._database, "channels", statement, filters, limit=query.limit, cursor=query.cursor
        )
        return Page(items=[Channel.model_validate(row) for row in rows], next_cursor=cursor)

    async def add_member(self, microdao_id: str, channel_id: UUID, member_id: str) -> bool:
        values = {"microdao_id": microdao_id, "channel_id": channel_id, "member_id": member_id}
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            await lock_channel(connection, values)
            if await is_member(connection, values):
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
        values = {"microdao_id": microdao_id, "channel_id": channel_id, "member_id": member_id}
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            await lock_channel(connection, values)
            return await (await connection.execute(REMOVE_MEMBER, values)).fetchone() is not None
