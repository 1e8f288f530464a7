"""Projects and follow-ups in PostgreSQL. Each statement names the tenant, and row security checks it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson
from psycopg import sql
from psycopg.rows import DictRow

from backends.postgres.cursors import read_cursor, write_cursor
from backends.postgres.pool import Database
from contracts.errors import Conflict, NotFound
from contracts.identity import Page, new_id
from contracts.workspace.projects import (
    FollowUp,
    FollowUpQuery,
    NewFollowUp,
    NewProject,
    Project,
    ProjectQuery,
)

INSERT_PROJECT = """
INSERT INTO projects (id, microdao_id, name, description, status)
VALUES (%(id)s, %(microdao_id)s, %(name)s, %(description)s, %(status)s)
RETURNING *
"""
FIND_PROJECT = "SELECT FROM projects WHERE microdao_id = %(microdao_id)s AND id = %(project_id)s"
# The second insert of a key waits for the first one's transaction and then finds its row.
INSERT_FOLLOW_UP = """
INSERT INTO follow_ups (id, microdao_id, title, description, project_id, assignee, due_date, created_by, idempotency_key, fingerprint)
VALUES (
    %(id)s, %(microdao_id)s, %(title)s, %(description)s, %(project_id)s, %(assignee)s, %(due_date)s, %(created_by)s,
    %(key)s, %(fingerprint)s
)
ON CONFLICT ON CONSTRAINT follow_ups_same_key DO NOTHING
RETURNING *
"""
FIND_BY_KEY = (
    "SELECT * FROM follow_ups WHERE microdao_id = %(microdao_id)s AND idempotency_key = %(key)s"
)
PAGE = sql.SQL(
    "SELECT * FROM {table} WHERE {conditions} ORDER BY created_at DESC, id DESC LIMIT %(rows)s"
)
AFTER = sql.SQL("(created_at, id) < (%(after_time)s, %(after_id)s::uuid)")


class PostgresProjects:
    """Implements the Projects port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, project: NewProject) -> Project:
        """Stores a new project."""
        async with self._database.transaction(microdao_id=project.microdao_id) as connection:
            row = await (
                await connection.execute(INSERT_PROJECT, {"id": new_id(), **project.model_dump()})
            ).fetchone()
        return Project.model_validate(row)

    async def page(self, query: ProjectQuery) -> Page[Project]:
        """Returns one page, newest first."""
        filters = query.model_dump(mode="json", exclude={"limit", "cursor"}, exclude_none=True)
        rows, cursor = await _page(self._database, "projects", filters, query.limit, query.cursor)
        return Page(items=[Project.model_validate(row) for row in rows], next_cursor=cursor)


class PostgresFollowUps:
    """Implements the FollowUps port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, microdao_id: str, created_by: str, key: str, follow_up: NewFollowUp
    ) -> tuple[FollowUp, bool]:
        """Stores a follow-up once for `key`."""
        values = follow_up.model_dump()
        fingerprint = hashlib.sha256(
            orjson.dumps([created_by, values], option=orjson.OPT_SORT_KEYS)
        ).digest()
        values |= {
            "id": new_id(),
            "microdao_id": microdao_id,
            "created_by": created_by,
            "key": hashlib.sha256(key.encode()).digest(),
            "fingerprint": fingerprint,
        }
        async with self._database.transaction(microdao_id=microdao_id) as connection:
            existing = await (await connection.execute(FIND_BY_KEY, values)).fetchone()
            if existing is not None:
                return _same(existing, fingerprint), False
            if (
                follow_up.project_id is not None
                and await (await connection.execute(FIND_PROJECT, values)).fetchone() is None
            ):
                raise NotFound("this microDAO has no such project: list its projects for their ids")
            row = await (await connection.execute(INSERT_FOLLOW_UP, values)).fetchone()
            if row is not None:
                return FollowUp.model_validate(row), True
            existing = await (await connection.execute(FIND_BY_KEY, values)).fetchone()
        assert existing is not None  # it conflicted, and rows are never deleted
        return _same(existing, fingerprint), False

    async def page(self, query: FollowUpQuery) -> Page[FollowUp]:
        """Returns one page, newest first."""
        filters = query.model_dump(mode="json", exclude={"limit", "cursor"}, exclude_none=True)
        rows, cursor = await _page(self._database, "follow_ups", filters, query.limit, query.cursor)
        return Page(items=[FollowUp.model_validate(row) for row in rows], next_cursor=cursor)


def _same(row: DictRow, fingerprint: bytes) -> FollowUp:
    if bytes(row["fingerprint"]) != fingerprint:
        raise Conflict("this idempotency key was used for another follow-up")
    return FollowUp.model_validate(row)


async def _page(
    database: Database, table: str, filters: Mapping[str, Any], limit: int, cursor: str | None
) -> tuple[list[DictRow], str | None]:
    """Returns the rows of a page and the cursor of the next one."""
    identity = {"of": table, **filters}
    values: dict[str, Any] = {**filters, "rows": limit + 1}
    conditions: list[sql.Composable] = [
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in filters
    ]
    if cursor is not None:
        values["after_time"], values["after_id"] = read_cursor(cursor, identity)
        conditions.append(AFTER)
    statement = PAGE.format(
        table=sql.Identifier(table), conditions=sql.SQL(" AND ").join(conditions)
    )
    async with database.transaction(microdao_id=filters["microdao_id"]) as connection:
        rows = await (await connection.execute(statement, values)).fetchall()
    shown = rows[:limit]
    more = len(rows) > limit
    return shown, write_cursor(
        shown[-1]["created_at"], str(shown[-1]["id"]), identity
    ) if more else None
