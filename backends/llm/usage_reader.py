"""Reads the usage ledger: sums by agent, model or day, page by page; what a subject has spent."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, date, datetime
from typing import Any

import orjson
from anyio import CapacityLimiter
from psycopg import sql

from backends.postgres.pool import Database, PostgresAdapter
from contracts.errors import InvalidRequest, Overloaded
from contracts.llm.limits import NANO_PER_USD, SubjectKind
from contracts.llm.usage import TOKEN_FIELDS, GroupKey, UsageFilter, UsagePage, UsageRow

QUERY_TIMEOUT_S = 10.0
AT_ONCE = 2
"""Queries at a time: sums over months must leave the ledger's writer connections of the pool."""
MAX_WAITING = 32

COLUMNS: dict[GroupKey, str] = {
    "agent": "agent_id",
    "microdao": "microdao_id",
    "model": "model",
    "provider": "provider",
    "day": "day",
    "trace": "trace_id",
}
KEYS: dict[GroupKey, sql.SQL] = {
    "agent": sql.SQL("agent_id"),
    "microdao": sql.SQL("microdao_id"),
    "model": sql.SQL("logical_model"),
    "provider": sql.SQL("provider"),
    "day": sql.SQL("(occurred_at AT TIME ZONE 'UTC')::date"),
    "trace": sql.SQL("coalesce(trace_id, '')"),
}
CONDITIONS = {
    "agent_id": sql.SQL("agent_id = %(agent_id)s"),
    "microdao_id": sql.SQL("microdao_id = %(microdao_id)s"),
    "model": sql.SQL("logical_model = %(model)s"),
    "provider": sql.SQL("provider = %(provider)s"),
    "trace_id": sql.SQL("trace_id = %(trace_id)s"),
}
SUMS = sql.SQL("""
    count(*) FILTER (WHERE last) AS calls,
    count(*) FILTER (WHERE last AND call_outcome <> 'ok') AS errors,
    count(*) AS attempts,
    {tokens},
    sum(cost_usd) AS cost_usd,
    count(*) FILTER (WHERE cost_usd IS NULL AND total_tokens > 0) AS unpriced
""").format(
    tokens=sql.SQL(", ").join(
        sql.SQL("coalesce(sum({0}), 0)::bigint AS {0}").format(sql.Identifier(name))
        for name in TOKEN_FIELDS
    )
)
RANGE = sql.SQL("occurred_at >= %(start)s AND occurred_at < %(end)s")
TOTAL = sql.SQL("SELECT {sums} FROM llm_attempts WHERE {where}")
GROUPED = sql.SQL(
    "SELECT {selected}, {sums} FROM llm_attempts WHERE {where} "
    "GROUP BY {keys} ORDER BY {keys} LIMIT %(rows)s"
)
AFTER = sql.SQL("({keys}) > ({values})")
SPENT = """
SELECT recorder, sum(cost_usd) AS spent FROM llm_spending
WHERE kind = %(kind)s AND subject = %(subject)s AND day >= %(since)s AND day < %(until)s
GROUP BY recorder
"""


class PostgresUsageReader:
    """Implements UsageReader over PostgreSQL.

    Pages are cut by the last row's keys, so no page is skipped or repeated.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = CapacityLimiter(AT_ONCE)

    async def query(self, usage_filter: UsageFilter) -> UsagePage:
        """Sums up the ledger; `start` and `end` must be set. A cursor keeps the range of its first
        page.

        Raises:
            InvalidRequest: the cursor is malformed, or belongs to another query.
            Overloaded: too many queries wait already.
            DatabaseUnavailable, DeadlineExceeded: the ledger cannot be read now, or not in time.
        """
        start, end, after = _continued(usage_filter)
        statement, values = _statement(usage_filter, after)
        if self._turns.statistics().tasks_waiting >= MAX_WAITING:
            raise Overloaded("too many usage queries are in work: retry shortly", retry_after_s=1.0)
        async with (
            self._turns,
            self._database.transaction(timeout_s=QUERY_TIMEOUT_S) as connection,
        ):
            found = await (
                await connection.execute(statement, {**values, "start": start, "end": end})
            ).fetchall()
        rows = [UsageRow.model_validate(row) for row in found[: usage_filter.limit]]
        more = len(found) > usage_filter.limit
        return UsagePage(
            rows=rows,
            start=start,
            end=end,
            next_cursor=_cursor(usage_filter, start, end, rows[-1]) if more else None,
        )


class UsageSpending(PostgresAdapter):
    """Sums of money."""

    async def spent(
        self, kind: SubjectKind, subject: str, since: datetime, until: datetime
    ) -> dict[str, int]:
        """Returns the nano-dollars that `subject` spent, by the process that recorded them.

        Counted are the UTC days from that of `since` to the one before that of `until`.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: the ledger cannot be read now, or not in time.
        """
        async with self._database.transaction(timeout_s=QUERY_TIMEOUT_S) as connection:
            values = {
                "kind": kind,
                "subject": subject,
                "since": since.astimezone(UTC).date(),
                "until": until.astimezone(UTC).date(),
            }
            rows = await (await connection.execute(SPENT, values)).fetchall()
        return {row["recorder"]: int(row["spent"] * NANO_PER_USD) for row in rows}


def _statement(
    usage_filter: UsageFilter, after: list[str] | None
) -> tuple[sql.Composed, dict[str, Any]]:
    values: dict[str, Any] = {
        name: value for name in CONDITIONS if (value := getattr(usage_filter, name)) is not None
    }
    conditions: list[sql.Composable] = [RANGE, *(CONDITIONS[name] for name in values)]
    if not usage_filter.group_by:
        return TOTAL.format(sums=SUMS, where=sql.SQL(" AND ").join(conditions)), values
    keys = sql.SQL(", ").join(KEYS[key] for key in usage_filter.group_by)
    if after is not None:
        names = [f"after_{position}" for position in range(len(after))]
        values.update(zip(names, after, strict=True))
        conditions.append(
            AFTER.format(keys=keys, values=sql.SQL(", ").join(map(sql.Placeholder, names)))
        )
    values["rows"] = usage_filter.limit + 1
    selected = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(KEYS[key], sql.Identifier(COLUMNS[key]))
        for key in usage_filter.group_by
    )
    return GROUPED.format(
        selected=selected, sums=SUMS, where=sql.SQL(" AND ").join(conditions), keys=keys
    ), values


def _continued(usage_filter: UsageFilter) -> tuple[datetime, datetime, list[str] | None]:
    """Returns the range, and the keys after which the page begins."""
    if usage_filter.cursor is None:
        if usage_filter.start is None or usage_filter.end is None:
            raise InvalidRequest("a usage query needs start and end")
        return usage_filter.start, usage_filter.end, None
    try:
        digest, start, end, *after = orjson.loads(base64.urlsafe_b64decode(usage_filter.cursor))
        begin, finish = datetime.fromisoformat(start), datetime.fromisoformat(end)
        values = [
            _checked(key, value) for key, value in zip(usage_filter.group_by, after, strict=True)
        ]
    except (ValueError, TypeError) as error:  # includes what base64 and orjson raise
        raise InvalidRequest("cursor is not one that this query gave") from error
    if digest != _digest(usage_filter) or begin.tzinfo is None or finish.tzinfo is None:
        raise InvalidRequest(
            "cursor belongs to another query: repeat it with the same filters and group_by"
        )
    return begin, finish, values


def _checked(key: GroupKey, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return date.fromisoformat(value).isoformat() if key == "day" else value


def _cursor(usage_filter: UsageFilter, start: datetime, end: datetime, last: UsageRow) -> str:
    keys = [str(getattr(last, COLUMNS[key])) for key in usage_filter.group_by]
    return base64.urlsafe_b64encode(
        orjson.dumps([_digest(usage_filter), start, end, *keys])
    ).decode()


def _digest(usage_filter: UsageFilter) -> str:
    """Tells one query from another, whatever its page and range."""
    identity = usage_filter.model_dump(exclude={"cursor", "limit", "start", "end"})
    return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
