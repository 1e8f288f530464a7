"""Principals and their keys in PostgreSQL, with a revision that replicas poll."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
import psycopg
from psycopg.rows import DictRow
from pydantic import ValidationError

from backends.access.audit import add_records
from backends.postgres.pages import read_page
from backends.postgres.pool import Database
from contracts.access.audit import AuditRecord
from contracts.access.keys import (
    MAX_LIVE_KEYS,
    IssuedKey,
    LiveKey,
    NewKey,
    PrincipalView,
    Rotation,
    Snapshot,
    key_hash,
    key_hint,
    new_key,
)
from contracts.access.principals import INTERNAL, Grants
from contracts.errors import Conflict, NotFound
from contracts.events import EventLog
from contracts.identity import Page, PageQuery, new_id

Connection = psycopg.AsyncConnection[DictRow]

STATE = "SELECT revision, signing_key, settings FROM access_state"
REVISION = "SELECT revision FROM access_state"
BUMP = "UPDATE access_state SET revision = revision + 1"
SETTINGS = "UPDATE access_state SET settings = %(settings)s"
ALL_GRANTS = "SELECT name, grants FROM access_principals"
LIVE_KEYS = """
SELECT id, principal, key_hash, expires_at FROM access_keys
WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""
# Replicas tell every two seconds; a row is written twice a minute at most.
TOUCH = """
UPDATE access_keys SET last_used_at = now()
WHERE id = ANY(%(ids)s)
    AND (last_used_at IS NULL OR last_used_at < now() - interval '30 seconds')
"""
VIEW = """
SELECT name AS id, name, origin, grants, created_at, updated_at,
    ARRAY(
        SELECT jsonb_build_object(
            'id', id, 'label', label, 'hint', hint, 'created_at', created_at,
            'expires_at', expires_at, 'last_used_at', last_used_at
        )
        FROM access_keys
        WHERE principal = name AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
        ORDER BY access_keys.created_at, id
    ) AS keys
FROM access_principals
"""
ONE = VIEW + "WHERE name = %(name)s"
PAGE = (
    VIEW
    + """
WHERE %(microdao_id)s::text IS NULL
    AND (created_at, name) < (
        coalesce(%(after_time)s::timestamptz, 'infinity'::timestamptz), %(after_id)s
    )
    OR %(after_time)s::timestamptz IS NULL
ORDER BY created_at DESC, name DESC
LIMIT %(rows)s
"""
)
PUT = """
INSERT INTO access_principals AS known (name, origin, grants)
VALUES (%(name)s, %(origin)s, %(grants)s)
ON CONFLICT (name) DO UPDATE
SET grants = excluded.grants, origin = excluded.origin, updated_at = now()
WHERE (known.grants, known.origin) IS DISTINCT FROM (excluded.grants, excluded.origin)
RETURNING xmax = 0 AS is_new
"""
ORIGIN = "SELECT origin FROM access_principals WHERE name = %(name)s FOR UPDATE"
DELETE = "DELETE FROM access_principals WHERE name = %(name)s"
COUNT_LIVE = """
SELECT count(*) AS live FROM access_keys
WHERE principal = %(name)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""
RETIRE = """
UPDATE access_keys
SET expires_at = least(expires_at, now() + make_interval(secs => %(grace_s)s))
WHERE principal = %(name)s AND revoked_at IS NULL
"""
# The file may take a key over, also from another principal; a revoked one stays revoked.
ADD_KEY = """
INSERT INTO access_keys AS known (id, principal, key_hash, hint, label, origin, expires_at)
VALUES (
    %(id)s, %(name)s, %(key_hash)s, %(hint)s, %(label)s, %(origin)s,
    now() + make_interval(secs => %(days)s::double precision * 86400)
)
ON CONFLICT (key_hash) DO UPDATE
SET principal = excluded.principal, label = excluded.label, origin = excluded.origin
WHERE excluded.origin = 'file'
RETURNING id, label, hint, created_at, expires_at, last_used_at
"""
REVOKE = """
UPDATE access_keys SET revoked_at = now()
WHERE principal = %(name)s AND id = %(key_id)s AND revoked_at IS NULL
RETURNING id
"""
# What the file no longer names.
DELETE_OTHERS = """
DELETE FROM access_principals WHERE origin = 'file' AND NOT name = ANY(%(names)s)
"""
DELETE_OTHER_KEYS = """
UPDATE access_keys SET revoked_at = now()
WHERE origin = 'file' AND revoked_at IS NULL AND NOT key_hash = ANY(%(hashes)s)
"""
WRITE_TIMEOUT_S = 5.0
IN_FILE = "this principal stands in configs/access.yaml: change it there"


class PostgresPrincipals:
    """Implements PrincipalStore."""

    def __init__(self, database: Database, events: EventLog) -> None:
        self._database = database
        self._events = events

    async def revision(self) -> int:
        async with self._database.transaction() as connection:
            row = await (await connection.execute(REVISION)).fetchone()
        return int(row["revision"]) if row else 0

    async def load(self) -> Snapshot:
        async with self._database.transaction(timeout_s=WRITE_TIMEOUT_S) as connection:
            state = await (await connection.execute(STATE)).fetchone()
            assert state is not None  # the migration wrote it
            rows = await (await connection.execute(ALL_GRANTS)).fetchall()
            keys = await (await connection.execute(LIVE_KEYS)).fetchall()
        grants = {row["name"]: self._grants(row) for row in rows}
        return Snapshot(
            revision=state["revision"],
            principals={name: found for name, found in grants.items() if found is not None},
            keys={
                bytes(row["key_hash"]): LiveKey(row["id"], row["principal"], row["expires_at"])
                for row in keys
            },
            signing_key=bytes(state["signing_key"]),
            settings=state["settings"],
        )

    async def touch(self, key_ids: Collection[UUID]) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(TOUCH, {"ids": list(key_ids)})

    async def page(self, query: PageQuery) -> Page[PrincipalView]:
        rows, cursor = await read_page(
            self._database,
            "principals",
            PAGE,
            {"microdao_id": None},
            limit=query.limit,
            cursor=query.cursor,
        )
        readable = [row for row in rows if self._grants(row) is not None]
        return Page(
            items=[PrincipalView.model_validate(row) for row in readable], next_cursor=cursor
        )

    async def find(self, name: str) -> PrincipalView:
        async with self._database.transaction() as connection:
            return await _view(connection, name)

    async def put(self, name: str, grants: Grants) -> tuple[PrincipalView, bool]:
        async with self._database.transaction(timeout_s=WRITE_TIMEOUT_S) as connection:
            await connection.execute(BUMP)  # writers take turns
            if await _origin(connection, name) == "file":
                raise Conflict(IN_FILE)
            is_new = await _put(connection, name, "api", grants)
            return await _view(connection, name), is_new

    async def delete(self, name: str) -> None:
        async with self._database.transaction(timeout_s=WRITE_TIMEOUT_S) as connection:
            await connection.execute(BUMP)
            origin = await _origin(connection, name)
            if origin is None:
                raise _unknown()
            if origin == "file":
                raise Conflict(IN_FILE)
            await connection.execute(DELETE, {"name": name})

    async def add_key(self, name: str, wanted: NewKey) -> IssuedKey:
        key = new_key()
        values: dict[str, Any] = {
            "name": name,
            "key_hash": key_hash(key.encode()),
            "hint": key_hint(key),
            "label": wanted.label,
            "days": wanted.expires_in_days,
        }
        async with self._database.transaction(timeout_s=WRITE_TIMEOUT_S) as connection:
            await connection.execute(BUMP)
            if await _origin(connection, name) is None:
                raise _unknown()
            if isinstance(wanted, Rotation):
                await connection.execute(RETIRE, {"name": name, "grace_s": wanted.grace_s})
            count = await (await connection.execute(COUNT_LIVE, values)).fetchone()
            if count is not None and count["live"] >= MAX_LIVE_KEYS:
                raise Conflict(f"`{name}` has {MAX_LIVE_KEYS} live keys: revoke one first")
            row = await _add_key(connection, values, "api")
        assert row is not None  # a new key has a new hash
        return IssuedKey.model_validate({**row, "key": key})

    async def revoke(self, name: str, key_id: UUID) -> None:
        values = {"name": name, "key_id": key_id}
        async with self._database.transaction(timeout_s=WRITE_TIMEOUT_S) as connection:
            await connection.execute(BUMP)
            if await (await connection.execute(REVOKE, values)).fetchone() is None:
                raise NotFound("there is no such live key of this principal")

    async def apply(
        self,
        principals: Mapping[str, Grants],
        keys: Sequence[tuple[str, str, bytes]],
        settings: Mapping[str, object],
    ) -> None:
        async with self._database.transaction(timeout_s=WRITE_TIMEOUT_S) as connection:
            await connection.execute(BUMP)
            await connection.execute(SETTINGS, {"settings": orjson.dumps(settings).decode()})
            await connection.execute(DELETE_OTHERS, {"names": list(principals)})
            for name, grants in principals.items():
                await _put(connection, name, "file", grants)
            hashes = [hashed for _, _, hashed in keys]
            await connection.execute(DELETE_OTHER_KEYS, {"hashes": hashes})
            for name, label, hashed in keys:
                values = {
                    "name": name,
                    "key_hash": hashed,
                    "hint": "access.yaml",
                    "label": label,
                    "days": None,
                }
                await _add_key(connection, values, "file")
            applied = {"principal": INTERNAL, "action": "apply", "object": "access.yaml"}
            await add_records(connection, [AuditRecord(**applied, outcome="success")])

    def _grants(self, row: DictRow) -> Grants | None:
        """Returns a row's grants; None, and an event, where this version cannot read them."""
        try:
            return Grants.model_validate(row["grants"])
        except ValidationError as error:
            self._events.emit("access.unreadable", principal=row["name"], error=error.title)
            return None


async def _view(connection: Connection, name: str) -> PrincipalView:
    row = await (await connection.execute(ONE, {"name": name})).fetchone()
    if row is None:
        raise _unknown()
    try:
        return PrincipalView.model_validate(row)
    except ValidationError:
        raise Conflict(
            "this version cannot read what a later one wrote: remove this principal, or replace it"
        ) from None


async def _origin(connection: Connection, name: str) -> str | None:
    row = await (await connection.execute(ORIGIN, {"name": name})).fetchone()
    return row["origin"] if row else None


async def _put(connection: Connection, name: str, origin: str, grants: Grants) -> bool:
    """Writes a principal; returns whether it is new."""
    text = orjson.dumps(grants.model_dump(mode="json", exclude_unset=True)).decode()
    values = {"name": name, "origin": origin, "grants": text}
    row = await (await connection.execute(PUT, values)).fetchone()
    return bool(row and row["is_new"])


async def _add_key(connection: Connection, values: dict[str, Any], origin: str) -> DictRow | None:
    given = {**values, "id": new_id(), "origin": origin}
    return await (await connection.execute(ADD_KEY, given)).fetchone()


def _unknown() -> NotFound:
    return NotFound("there is no such principal: GET /internal/access/principals lists them")
