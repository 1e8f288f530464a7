"""Writes usage records into the ledger's tables, whose columns are the fields of the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, get_args, get_origin, get_type_hints
from uuid import UUID

import orjson
from psycopg import sql

from backends.postgres.errors import is_about_the_row
from backends.postgres.pool import Database
from backends.postgres.purging import purge
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.llm.usage import (
    ATTEMPT_FIELDS,
    CALL_FIELDS,
    SHARED_FIELDS,
    AttemptRecord,
    UsageRecord,
)

INSERT_TIMEOUT_S = 5.0
PURGE = "SELECT llm_usage_purge(%(days)s * interval '1 day', %(at_most)s) AS removed"

_TYPES: dict[Any, str] = {
    str: "text",
    int: "bigint",
    float: "double precision",
    bool: "boolean",
    Decimal: "numeric",
    UUID: "uuid",
    datetime: "timestamptz",
    tuple: "json",
}


def _declared(record: type[AttemptRecord]) -> sql.Composable:
    """Returns the record's fields as columns of a JSON record: `name type, …`."""
    hints = get_type_hints(record)
    return _listed(
        sql.SQL("{} {}").format(
            sql.Identifier(each.name), sql.SQL(_TYPES[_plain_type(hints[each.name])])
        )
        for each in fields(record)
    )


def _plain_type(hint: Any) -> Any:
    """Returns `str` for `str | None`, `tuple` for `tuple[…]`."""
    return get_origin(hint) if get_origin(hint) is tuple else (*get_args(hint), hint)[0]


def _with_defaults(record: type[AttemptRecord], source: str) -> sql.Composable:
    """Returns the record's columns; what an older version did not write takes its default."""
    return _listed(
        sql.SQL("{}").format(sql.Identifier(source, each.name))
        if each.default in {MISSING, None, ()}
        else sql.SQL("coalesce({}, {}) AS {}").format(
            sql.Identifier(source, each.name),
            sql.Literal(each.default),
            sql.Identifier(each.name),
        )
        for each in fields(record)
    )


def _columns(names: Iterable[str], source: str | None = None) -> sql.Composable:
    return _listed(sql.Identifier(*filter(None, (source, name))) for name in names)


def _listed(parts: Iterable[sql.Composable]) -> sql.Composable:
    return sql.SQL(", ").join(parts)


# The server parses the records as they lie in the journal: one parameter, no loop over columns
# here. A record without `tries` is its own only attempt. Sums of money are added in the order of
# their key, so that two writers can wait for each other but not deadlock.
INSERT = (
    sql.SQL("""
WITH records AS MATERIALIZED (
    SELECT {call_values} FROM json_to_recordset(%(records)s::json) AS record ({call_declared})
), calls AS (
    INSERT INTO llm_usage ({call_columns}) SELECT {call_columns} FROM records
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), tried AS (
    INSERT INTO llm_attempts (call_id, number, last, call_outcome, {shared}, {own})
    SELECT
        records.id, attempt.number,
        attempt.number = max(attempt.number) OVER (PARTITION BY records.id),
        records.outcome, {shared_values}, tried.*
    FROM records
    CROSS JOIN LATERAL json_array_elements(
        CASE WHEN json_array_length(coalesce(records.tries, '[]')) > 0 THEN records.tries
             ELSE json_build_array(to_json(records)) END
    ) WITH ORDINALITY AS attempt (value, number)
    CROSS JOIN LATERAL (
        SELECT {own_values} FROM json_to_record(attempt.value) AS record ({own_declared})
    ) AS tried
    ON CONFLICT (call_id, number) DO NOTHING
    RETURNING agent_id, microdao_id, credential, occurred_at, recorder, cost_usd
), spent AS (
    INSERT INTO llm_spending AS known (kind, subject, day, recorder, cost_usd)
    SELECT
        subjects.kind, subjects.subject, (occurred_at AT TIME ZONE 'UTC')::date, recorder,
        sum(cost_usd)
    FROM tried
    CROSS JOIN LATERAL (VALUES
        ('agent', agent_id), ('microdao', microdao_id), ('credential', credential)
    ) AS subjects (kind, subject)
    WHERE cost_usd > 0
    GROUP BY 1, 2, 3, 4
    ORDER BY 1, 2, 3, 4
    ON CONFLICT (kind, subject, day, recorder)
        DO UPDATE SET cost_usd = known.cost_usd + excluded.cost_usd
)
SELECT count(*) AS written FROM calls
""")
    .format(
        call_values=_with_defaults(UsageRecord, "record"),
        call_declared=_declared(UsageRecord),
        call_columns=_columns(CALL_FIELDS),
        shared=_columns(SHARED_FIELDS),
        shared_values=_columns(SHARED_FIELDS, "records"),
        own=_columns(ATTEMPT_FIELDS),
        own_values=_with_defaults(AttemptRecord, "record"),
        own_declared=_declared(AttemptRecord),
    )
    .as_bytes()
)


class PostgresUsageLedger:
    """Implements UsageLedger. `written` counts new rows, `rejected` records that were refused."""

    def __init__(self, database: Database, events: EventLog) -> None:
        self._database = database
        self._events = events
        self.written = 0
        self.rejected = 0

    async def write(self, records: list[bytes]) -> list[bytes]:
        """Writes the records; returns those that are in the ledger now.

        A record that the database refuses for what it holds is logged and left out, so that it does
        not hold up the others.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: the ledger cannot be written now.
        """
        try:
            await self._insert(records)
        except DaarionError as error:
            if not is_about_the_row(error):
                raise
            return await self._write_one_by_one(records)
        return records

    async def purge(self, days: float | None) -> int:
        """Deletes calls and attempts of more than `days` ago, of None none; returns the number."""
        return await purge(self._database, PURGE, days=days)

    async def _write_one_by_one(self, records: list[bytes]) -> list[bytes]:
        accepted = []
        for record in records:
            try:
                await self._insert([record])
            except DaarionError as error:
                if not is_about_the_row(error):
                    raise
                self.rejected += 1
                self._events.emit(
                    "usage.rejected", record_id=_id_of(record), error=str(error.__cause__)
                )
            else:
                accepted.append(record)
        return accepted

    async def _insert(self, records: list[bytes]) -> None:
        async with self._database.transaction(timeout_s=INSERT_TIMEOUT_S) as connection:
            values = {"records": f"[{b','.join(records).decode()}]"}
            row = await (await connection.execute(INSERT, values)).fetchone()
        self.written += row["written"] if row else 0


def _id_of(record: bytes) -> str:
    try:
        return str(orjson.loads(record)["id"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "unreadable"
