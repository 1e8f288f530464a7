"""Projects and follow-ups in PostgreSQL; a follow-up is stored once per key.

Each statement names the tenant, and row security checks it.
"""

from __future__ import annotations

import hashlib

import orjson
from psycopg.rows import DictRow

from backends.postgres.pages import read_page
from backends.postgres.pool import PostgresAdapter
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
PROJECTS_PAGE = """
SELECT * FROM projects
WHERE microdao_id = %(microdao_id)s
    AND (%(status)s::text IS NULL OR status = %(status)s)
    AND (created_at, id) < (
        coalesce(%(after_time)s::timestamptz, 'infinity'::timestamptz), %(after_id)s::uuid
    )
ORDER BY created_at DESC, id DESC
LIMIT %(rows)s
"""
FIND_PROJECT = "SELECT FROM projects WHERE microdao_id = %(microdao_id)s AND id = %(project_id)s"
# A second insert of a key waits for the first one's transaction and then finds its row.
INSERT_FOLLOW_UP = """
INSERT INTO follow_ups (
    id, microdao_id, title, description, project_id, assignee, due_date, created_by,
    idempotency_key, fingerprint
)
VALUES (
    %(id)s, %(microdao_id)s, %(title)s, %(description)s, %(project_id)s, %(assignee)s,
    %(due_date)s, %(created_by)s, %(key)s, %(fingerprint)s
)
ON CONFLICT ON CONSTRAINT follow_ups_same_key DO NOTHING
RETURNING *
"""
FIND_BY_KEY = """
SELECT * FROM follow_ups
WHERE microdao_id = %(microdao_id)s AND idempotency_key = %(key)s
"""
FOLLOW_UPS_PAGE = """
SELECT * FROM follow_ups
WHERE microdao_id = %(microdao_id)s
    AND (%(project_id)s::uuid IS NULL OR project_id = %(project_id)s::uuid)
    AND (%(assignee)s::text IS NULL OR assignee = %(assignee)s)
    AND (%(status)s::text IS NULL OR status = %(status)s)
    AND (created_at, id) < (
        coalesce(%(after_time)s::timestamptz, 'infinity'::timestamptz), %(after_id)s::uuid
    )
ORDER BY created_at DESC, id DESC
LIMIT %(rows)s
"""


class PostgresProjects(PostgresAdapter):
    """Implements ProjectStore."""

    async def create(self, project: NewProject) -> Project:
        values = {"id": new_id(), **project.model_dump()}
        async with self._database.transaction(microdao_id=project.microdao_id) as connection:
            row = await (await connection.execute(INSERT_PROJECT, values)).fetchone()
        return Project.model_validate(row)

    async def page(self, query: ProjectQuery) -> Page[Project]:
        filters = query.model_dump(mode="json", exclude={"limit", "cursor"})
        rows, cursor = await read_page(
            self._database,
            "projects",
            PROJECTS_PAGE,
            filters,
            limit=query.limit,
            cursor=query.cursor,
        )
        return Page(items=[Project.model_validate(row) for row in rows], next_cursor=cursor)


class PostgresFollowUps(PostgresAdapter):
    """Implements FollowUpStore."""

    async def create(
        self, microdao_id: str, created_by: str, key: str, follow_up: NewFollowUp
    ) -> tuple[FollowUp, bool]:
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
        filters = query.model_dump(mode="json", exclude={"limit", "cursor"})
        rows, cursor = await read_page(
            self._database,
            "follow_ups",
            FOLLOW_UPS_PAGE,
            filters,
            limit=query.limit,
            cursor=query.cursor,
        )
        return Page(items=[FollowUp.model_validate(row) for row in rows], next_cursor=cursor)


def _same(row: DictRow, fingerprint: bytes) -> FollowUp:
    if bytes(row["fingerprint"]) != fingerprint:
        raise Conflict("this idempotency key was used for another follow-up")
    return FollowUp.model_validate(row)
