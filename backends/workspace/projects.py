"""Projects in PostgreSQL. Each statement names the tenant, and row security checks it."""

from __future__ import annotations

from backends.postgres.pages import read_page
from backends.postgres.pool import Database
from contracts.identity import Page, new_id
from contracts.workspace.projects import NewProject, Project, ProjectQuery

INSERT_PROJECT = """
INSERT INTO projects (id, microdao_id, name, description, status)
VALUES (%(id)s, %(microdao_id)s, %(name)s, %(description)s, %(status)s)
RETURNING *
"""
PAGE = """
SELECT * FROM projects
WHERE microdao_id = %(microdao_id)s
    AND (%(status)s::text IS NULL OR status = %(status)s)
    AND (created_at, id) < (
        coalesce(%(after_time)s::timestamptz, 'infinity'::timestamptz), %(after_id)s::uuid
    )
ORDER BY created_at DESC, id DESC
LIMIT %(rows)s
"""


class PostgresProjects:
    """Implements ProjectStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, project: NewProject) -> Project:
        values = {"id": new_id(), **project.model_dump()}
        async with self._database.transaction(microdao_id=project.microdao_id) as connection:
            row = await (await connection.execute(INSERT_PROJECT, values)).fetchone()
        return Project.model_validate(row)

    async def page(self, query: ProjectQuery) -> Page[Project]:
        filters = query.model_dump(mode="json", exclude={"limit", "cursor"})
        rows, cursor = await read_page(
            self._database, "projects", PAGE, filters, limit=query.limit, cursor=query.cursor
        )
        return Page(items=[Project.model_validate(row) for row in rows], next_cursor=cursor)
