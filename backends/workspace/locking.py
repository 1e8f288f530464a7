"""What every write to a channel begins with: its row is locked, and the sender is a member."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import psycopg
from psycopg.rows import DictRow

from contracts.errors import NotFound

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


async def lock_channel(connection: Connection, values: dict[str, Any]) -> None:
    """Locks the channel that `values` name until the transaction ends. Raises NotFound."""
    if await (await connection.execute(LOCK, values)).fetchone() is None:
        raise no_such_channel()


async def is_member(connection: Connection, values: dict[str, Any]) -> bool:
    """Returns whether `values["member_id"]` is a member of the channel."""
    return await (await connection.execute(IS_MEMBER, values)).fetchone() is not None


def digest(*parts: str) -> bytes:
    """Returns a digest of texts that keeps their boundaries."""
    return hashlib.sha256(orjson.dumps(parts)).digest()


def no_such_channel() -> NotFound:
    """Returns the error for a missing channel, and for another microDAO's."""
    return NotFound("no such channel")
