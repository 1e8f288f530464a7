"""Every table of a database: rows of made-up values, and what two databases are compared by."""

from __future__ import annotations

import subprocess

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row

from launcher.cluster import programs

TABLES = """
SELECT relname FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname
"""
COLUMNS = r"""
SELECT attname AS name, format_type(atttypid, NULL) AS type, attnotnull AND NOT atthasdef AS needed,
    (SELECT substring(string_agg(pg_get_constraintdef(oid), ' ') FROM '= ANY \(ARRAY\[(''[^'']*'')')
     FROM pg_constraint WHERE conrelid = attrelid AND contype = 'c' AND conkey = ARRAY[attnum])
        AS first_allowed
FROM pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
  AND attidentity = '' AND attgenerated = ''
ORDER BY attnum
"""
VALUES = {
    "shard": "0",
    "uuid": "'01890000-0000-7000-8000-000000000001'",
    "bytea": r"'\x00ff27'",
    "boolean": "true",
    "json": """'{"a": "її''", "b": [1, null]}'""",
    "jsonb": """'{"a": "її''", "b": [1, null]}'""",
    "text[]": """ARRAY['a,b', '"', NULL]""",
    "halfvec": "array_fill(0.25, ARRAY[384])::halfvec",
    "timestamp with time zone": "'2026-02-28 23:59:59.999999+00'",
    "date": "'2026-02-28'",
    "text": "'Ґава\t\\N \"п''ять\"\n'",
}


async def fill_tables(url: str) -> None:
    """Adds a row to each empty table, as a superuser and past foreign keys.

    Raises:
        psycopg.errors.IntegrityError: a table's checks refuse the values.
    """
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as connection:
        await connection.execute("SET session_replication_role = replica")
        for name, rows in (await rows_of(url)).items():
            columns = await (await connection.execute(COLUMNS, [name])).fetchall()
            if not rows:
                try:
                    async with connection.transaction():
                        await connection.execute(_insert(name, columns))
                except psycopg.errors.CheckViolation:  # some columns exclude one another
                    needed = [column for column in columns if column["needed"]]
                    await connection.execute(_insert(name, needed))


def _insert(table: str, columns: list[DictRow]) -> sql.Composed:
    values = [
        column["first_allowed"] or VALUES.get(column["name"]) or VALUES.get(column["type"], "1")
        for column in columns
    ]
    return sql.SQL("INSERT INTO {} ({}) SELECT {}").format(
        sql.Identifier(table),
        sql.SQL(", ").join(sql.Identifier(column["name"]) for column in columns),
        sql.SQL(", ").join(map(sql.SQL, values)),
    )


async def rows_of(url: str) -> dict[str, list[str]]:
    """Returns the rows of every table in PostgreSQL's own form, sorted."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = {}
        for (name,) in await (await connection.execute(TABLES)).fetchall():
            query = sql.SQL("SELECT one::text FROM {} AS one ORDER BY 1")
            rows = await connection.execute(query.format(sql.Identifier(name)))
            found[name] = [row for (row,) in await rows.fetchall()]
        return found


def definitions_of(url: str) -> list[str]:
    """Returns tables, indexes, functions, policies, owners and rights, as pg_dump writes them."""
    parameters = conninfo_to_dict(url)
    password = parameters.pop("password")
    dump = subprocess.run(
        [programs() / "pg_dump", "--schema-only", f"--dbname={make_conninfo('', **parameters)}"],
        env={"PGPASSWORD": password},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [line for line in dump.splitlines() if not line.startswith(("\\", "--"))]
