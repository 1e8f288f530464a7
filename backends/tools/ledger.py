"""The ledger of tool calls in PostgreSQL.

A call runs under a lease that its owner (one process) prolongs; who finds a running call whose lease is over knows that
its owner is gone. Attempts are numbered, so that an owner that was only slow cannot overwrite what came after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import orjson
from psycopg.rows import DictRow

from backends.postgres.pool import Database
from backends.postgres.purging import purge_all
from contracts.errors import DatabaseUnavailable
from contracts.tools.api import Decision
from contracts.tools.ledger import (
    AbandonedCall,
    CallFilter,
    CallIntent,
    CallPage,
    CallRow,
    RecordedCall,
    Settlement,
    StoredResult,
)

_INTENT_COLUMNS = (
    "id, microdao_id, call_id, agent_id, channel_id, tool_id, tool_version, effect, via, request_id, fingerprint, rule, args, keep_args, "
    "context, approval_digest"
)
_INTENT_VALUES = (
    "%(id)s, %(microdao_id)s, %(call_id)s, %(agent_id)s, %(channel_id)s, %(tool_id)s, %(tool_version)s, %(effect)s, %(via)s, "
    "%(request_id)s, %(fingerprint)s, %(rule)s, %(args)s, %(keep_args)s, %(context)s, %(approval_digest)s"
)
_SETTLED_COLUMNS = "ok, error_kind, error, details, retryable, effect_possible, tier, executor_attempts, duration_ms, result_bytes, result_shown"
_SETTLED_VALUES = (
    "%(ok)s, %(error_kind)s, %(error)s, %(details)s, %(retryable)s, %(effect_possible)s, %(tier)s, %(executor_attempts)s, "
    "%(duration_ms)s, %(result_bytes)s, %(result_shown)s"
)
_LEASE = "now() + make_interval(secs => %(lease_s)s)"
# What a crash of the database loses is the end of a call, never its beginning: such a `write` ends as indeterminate.
_UNFLUSHED = "set_config('synchronous_commit', 'off', true)"
_HOLDER = "(microdao_id, call_id) WHERE state <> 'refused'"
_STORE_RESULT = """
INSERT INTO tool_results (id, microdao_id, body, items, expires_at)
SELECT settled.id, %(microdao_id)s, %(body)s, %(items)s, now() + make_interval(secs => %(keep_s)s)
FROM settled WHERE %(body)s::text IS NOT NULL
"""

FIND = """
SELECT calls.id, calls.call_id, calls.microdao_id, calls.tool_id, calls.tool_version, calls.effect, calls.fingerprint, calls.state,
       calls.attempt, calls.state = 'running' AND calls.lease_until < now() AS expired, calls.approval, calls.approval_digest,
       coalesce(calls.approved_until < now(), true) AS approval_ended, calls.ok, calls.error_kind,
       calls.error, calls.details, calls.retryable, calls.effect_possible, calls.tier, calls.executor_attempts, calls.duration_ms,
       results.body, results.items, results.expires_at
FROM tool_calls AS calls
LEFT JOIN tool_results AS results ON results.id = calls.id AND results.microdao_id = calls.microdao_id
WHERE calls.microdao_id = %(microdao_id)s AND calls.call_id = %(call_id)s AND calls.state <> 'refused'
"""
CLAIM = f"""
INSERT INTO tool_calls ({_INTENT_COLUMNS}, state, owner, lease_until)
VALUES ({_INTENT_VALUES}, 'running', %(owner)s, {_LEASE})
ON CONFLICT {_HOLDER} DO NOTHING
RETURNING id, CASE WHEN effect <> 'write' THEN {_UNFLUSHED} END
"""  # noqa: S608  # constants
AWAIT = f"""
INSERT INTO tool_calls ({_INTENT_COLUMNS}, state)
VALUES ({_INTENT_VALUES}, 'awaiting_approval')
ON CONFLICT {_HOLDER} DO NOTHING RETURNING id
"""  # noqa: S608
TAKE_OVER = f"""
UPDATE tool_calls
SET state = 'running', attempt = attempt + CASE WHEN state = 'awaiting_approval' THEN 0 ELSE 1 END, owner = %(owner)s,
    lease_until = {_LEASE}, ok = NULL, error_kind = NULL, error = NULL, details = NULL, retryable = NULL, effect_possible = NULL,
    settled_at = NULL, context = NULL
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND attempt = %(attempt)s AND state = %(state)s
  AND (state <> 'running' OR lease_until < now())
  AND (state <> 'awaiting_approval' OR (approval = 'granted' AND approved_until >= now()))
RETURNING attempt
"""  # noqa: S608
SETTLE = f"""
WITH settled AS (
    UPDATE tool_calls SET state = 'settled', ({_SETTLED_COLUMNS}) = ({_SETTLED_VALUES}), settled_at = now(),
           args = CASE WHEN keep_args THEN args END
    WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND attempt = %(attempt)s AND state = 'running'
    RETURNING id, {_UNFLUSHED}
), stored AS ({_STORE_RESULT})
SELECT id FROM settled
"""  # noqa: S608
RECORD = f"""
WITH settled AS (
    INSERT INTO tool_calls AS calls ({_INTENT_COLUMNS}, {_SETTLED_COLUMNS}, state, started_at, settled_at)
    VALUES ({_INTENT_VALUES}, {_SETTLED_VALUES}, 'settled', now() - make_interval(secs => %(duration_ms)s / 1000), now())
    ON CONFLICT {_HOLDER} DO UPDATE
    SET ({_SETTLED_COLUMNS}) = ({_SETTLED_VALUES}), settled_at = now(), attempt = calls.attempt + 1
    WHERE calls.state = 'settled' AND NOT calls.ok AND calls.retryable AND calls.effect = 'read'
      AND calls.fingerprint = excluded.fingerprint
    RETURNING id, {_UNFLUSHED}
), stored AS ({_STORE_RESULT})
SELECT id FROM settled
"""  # noqa: S608
REFUSE = f"""
INSERT INTO tool_calls ({_INTENT_COLUMNS}, state, ok, error_kind, error, retryable, settled_at)
VALUES ({_INTENT_VALUES}, 'refused', false, %(error_kind)s, %(error)s, %(retryable)s, now())
RETURNING {_UNFLUSHED}
"""  # noqa: S608
DECIDE_APPROVAL = """
UPDATE tool_calls
SET approval = %(approval)s,
    approved_until = CASE WHEN %(approval)s = 'granted' THEN now() + make_interval(secs => %(valid_s)s) END
WHERE microdao_id = %(microdao_id)s AND call_id = %(call_id)s AND state = 'awaiting_approval'
  AND (approval IS NULL OR (approval = 'granted' AND coalesce(approved_until < now(), true)))
RETURNING id
"""
EXTEND = "SELECT tool_calls_extend_leases(%(owner)s, %(records)s, %(lease_s)s)"
SETTLE_ABANDONED = "SELECT * FROM tool_calls_settle_abandoned(%(grace_s)s, %(at_most)s)"
PURGE = "SELECT tool_calls_purge(make_interval(days => %(days)s), %(at_most)s) AS removed"
READ_RESULT = """
SELECT id, body, items, expires_at FROM tool_results
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND expires_at > now()
"""
LIST = """
SELECT calls.id, calls.call_id, calls.agent_id, calls.microdao_id, calls.tool_id, calls.tool_version, calls.effect, calls.via,
       calls.request_id, encode(calls.fingerprint, 'hex') AS args_hash, calls.rule, calls.state, calls.ok, calls.error_kind, calls.error,
       calls.retryable, calls.effect_possible, calls.tier, calls.attempt, calls.executor_attempts AS attempts, calls.duration_ms,
       calls.result_bytes, calls.started_at, calls.settled_at, calls.approval, calls.approved_until,
       CASE WHEN calls.keep_args OR %(show_waiting)s THEN calls.args END AS args,
       CASE WHEN %(show_waiting)s THEN calls.context END AS context,
       CASE WHEN calls.result_shown THEN (SELECT results.body FROM tool_results AS results WHERE results.id = calls.id) END AS result
FROM tool_calls AS calls
WHERE calls.microdao_id = %(microdao_id)s
  AND (%(agent_id)s::text IS NULL OR calls.agent_id = %(agent_id)s)
  AND (%(tool_id)s::text IS NULL OR calls.tool_id = %(tool_id)s)
  AND (%(call_id)s::text IS NULL OR calls.call_id = %(call_id)s)
  AND (%(state)s::text IS NULL OR calls.state = %(state)s)
  AND (%(error_kind)s::text IS NULL OR calls.error_kind = %(error_kind)s)
  AND (%(start)s::timestamptz IS NULL OR calls.started_at >= %(start)s)
  AND (%(end)s::timestamptz IS NULL OR calls.started_at < %(end)s)
  AND (%(cursor)s::uuid IS NULL OR calls.id < %(cursor)s)
ORDER BY calls.id DESC
LIMIT %(limit)s
"""
SLOW_TIMEOUT_S = 5.0
INSERT_ATTEMPTS = 3


@dataclass(frozen=True)
class LedgerLimits:
    """Seconds of a lease and of the patience after it, how long results, calls and approvals last, rows per upkeep."""

    lease_s: float = 8.0
    grace_s: float = 4.0
    keep_results_s: float = 86_400.0
    keep_calls_days: int = 90
    approval_valid_s: float = 3_600.0
    batch: int = 500


class PostgresToolLedger:
    """Implements the ToolLedger port for one owner, normally this process."""

    def __init__(
        self, database: Database, limits: LedgerLimits | None = None, *, owner: UUID | None = None
    ) -> None:
        self._database = database
        self._limits = limits or LedgerLimits()
        self._owner = owner or uuid4()

    def reconfigure(self, limits: LedgerLimits) -> None:
        """Takes other limits for the calls that come."""
        self._limits = limits

    async def find(self, microdao_id: str, call_id: str) -> RecordedCall | None:
        """The call that holds this id."""
        found = await self._database.run(
            FIND, {"microdao_id": microdao_id, "call_id": call_id}, microdao_id=microdao_id
        )
        return _recorded(found[0]) if found else None

    async def claim(self, intent: CallIntent) -> RecordedCall | None:
        """Records that the call begins, durably. Returns None when it is ours, else the call that holds the id."""
        return await self._insert(CLAIM, intent)

    async def await_approval(self, intent: CallIntent) -> RecordedCall | None:
        """Records that the call waits for approval. Returns the call that holds the id already, or None."""
        return await self._insert(AWAIT, intent)

    async def take_over(self, call: RecordedCall) -> bool:
        """Begins the next attempt of a call that may run (again); False when somebody else was faster."""
        values = {
            "microdao_id": call.microdao_id,
            "id": call.id,
            "attempt": call.attempt,
            "state": call.state,
        }
        return await self._changed(call.microdao_id, TAKE_OVER, {**values, **self._ownership()})

    async def settle(
        self, microdao_id: str, record: UUID, attempt: int, settlement: Settlement
    ) -> bool:
        """Ends a running attempt; False when the call was settled or taken over meanwhile."""
        values = {
            "microdao_id": microdao_id,
            "id": record,
            "attempt": attempt,
            **self._settled(settlement),
        }
        return await self._changed(microdao_id, SETTLE, values)

    async def record(self, intent: CallIntent, settlement: Settlement) -> UUID | None:
        """Records a finished `read`; returns its record's id, None when another success or another call holds the id already."""
        values = {**_intent(intent), **self._settled(settlement)}
        rows = await self._database.run(RECORD, values, microdao_id=intent.microdao_id)
        return rows[0]["id"] if rows else None

    async def refuse(self, intent: CallIntent, decision: Decision) -> None:
        """Records a refusal."""
        refusal = {
            "error_kind": decision.error_kind,
            "error": decision.reason,
            "retryable": decision.retryable,
        }
        refusal |= {"args": intent.args if intent.keep_args else None, "context": None}
        await self._database.run(
            REFUSE, {**_intent(intent), **refusal}, microdao_id=intent.microdao_id
        )

    async def decide_approval(self, microdao_id: str, call_id: str, *, granted: bool) -> bool:
        """Grants or rejects a waiting call; False when none of that id waits undecided, or with a grant that has ended."""
        values = {
            "microdao_id": microdao_id,
            "call_id": call_id,
            "approval": "granted" if granted else "rejected",
        }
        return await self._changed(
            microdao_id, DECIDE_APPROVAL, {**values, "valid_s": self._limits.approval_valid_s}
        )

    async def extend_leases(self, records: Sequence[UUID]) -> None:
        """Gives a sign of life for calls that this process runs."""
        async with self._database.transaction() as connection:
            await connection.execute(EXTEND, {**self._ownership(), "records": list(records)})

    async def settle_abandoned(self) -> Sequence[AbandonedCall]:
        """Ends calls whose owners are gone: a `write` as indeterminate, others as unavailable."""
        values = {"grace_s": self._limits.grace_s, "at_most": self._limits.batch}
        async with self._database.transaction(timeout_s=SLOW_TIMEOUT_S) as connection:
            rows = await (await connection.execute(SETTLE_ABANDONED, values)).fetchall()
        return [AbandonedCall(**row) for row in rows]

    async def purge(self) -> int:
        """Removes what is older than it is kept; returns the number of rows."""
        return await purge_all(self._purge_some, self._limits.batch)

    async def _purge_some(self) -> int:
        values = {"days": self._limits.keep_calls_days, "at_most": self._limits.batch}
        async with self._database.transaction(timeout_s=SLOW_TIMEOUT_S) as connection:
            row = await (await connection.execute(PURGE, values)).fetchone()
        return int(row["removed"]) if row else 0

    async def list_calls(self, wanted: CallFilter, *, show_waiting_args: bool = False) -> CallPage:
        """A page of the audit."""
        values = {
            **wanted.model_dump(),
            "limit": wanted.limit + 1,
            "show_waiting": show_waiting_args,
        }
        async with self._database.transaction(
            microdao_id=wanted.microdao_id, timeout_s=SLOW_TIMEOUT_S
        ) as connection:
            rows = await (await connection.execute(LIST, values)).fetchall()
        calls = [_row(row) for row in rows[: wanted.limit]]
        return CallPage(calls=calls, next_cursor=calls[-1].id if len(rows) > wanted.limit else None)

    async def read_result(self, microdao_id: str, result: UUID) -> StoredResult | None:
        """A whole result that is still kept."""
        async with self._database.transaction(
            microdao_id=microdao_id, timeout_s=SLOW_TIMEOUT_S
        ) as connection:
            row = await (
                await connection.execute(READ_RESULT, {"microdao_id": microdao_id, "id": result})
            ).fetchone()
        return None if row is None else StoredResult(**row)

    async def _insert(self, statement: str, intent: CallIntent) -> RecordedCall | None:
        """Inserts, or returns who was first; a row of this very intent is an insertion whose answer got lost."""
        values = {**_intent(intent), **self._ownership()}
        for _ in range(INSERT_ATTEMPTS):
            if await self._changed(intent.microdao_id, statement, values):
                return None
            holder = await self.find(intent.microdao_id, intent.call_id)
            if holder is not None:
                return None if holder.id == intent.id else holder
        raise DatabaseUnavailable("the call's record comes and goes: retry")

    async def _changed(self, microdao_id: str, statement: str, values: dict[str, Any]) -> bool:
        return bool(await self._database.run(statement, values, microdao_id=microdao_id))

    def _ownership(self) -> dict[str, Any]:
        return {"owner": self._owner, "lease_s": self._limits.lease_s}

    def _settled(self, settlement: Settlement) -> dict[str, Any]:
        return {
            "ok": settlement.ok,
            "error_kind": settlement.error_kind,
            "error": settlement.error,
            "details": orjson.dumps(settlement.details).decode() if settlement.details else None,
            "retryable": settlement.retryable,
            "effect_possible": settlement.effect_possible,
            "tier": settlement.tier,
            "executor_attempts": settlement.executor_attempts,
            "duration_ms": settlement.duration_ms,
            "result_bytes": None if settlement.result is None else len(settlement.result.encode()),
            "result_shown": settlement.shown,
            "body": settlement.result,
            "items": settlement.result_items,
            "keep_s": self._limits.keep_results_s,
        }


def _intent(intent: CallIntent) -> dict[str, Any]:
    return {
        "id": intent.id,
        "microdao_id": intent.microdao_id,
        "call_id": intent.call_id,
        "agent_id": intent.agent_id,
        "channel_id": intent.channel_id,
        "tool_id": intent.tool_id,
        "tool_version": intent.tool_version,
        "effect": intent.effect,
        "via": intent.via,
        "request_id": intent.request_id,
        "fingerprint": intent.fingerprint,
        "rule": intent.rule,
        "args": intent.args,
        "keep_args": intent.keep_args,
        "context": intent.context,
        "approval_digest": intent.approval_digest,
    }


def _recorded(row: DictRow) -> RecordedCall:
    return RecordedCall(
        id=row["id"],
        call_id=row["call_id"],
        microdao_id=row["microdao_id"],
        tool_id=row["tool_id"],
        tool_version=row["tool_version"],
        effect=row["effect"],
        fingerprint=bytes(row["fingerprint"]),
        state=row["state"],
        attempt=row["attempt"],
        expired=row["expired"],
        approval=row["approval"],
        settlement=_settlement(row) if row["state"] == "settled" else None,
        result_kept_until=row["expires_at"],
        approval_digest=None if row["approval_digest"] is None else bytes(row["approval_digest"]),
        approval_ended=row["approval_ended"],
    )


def _settlement(row: DictRow) -> Settlement:
    return Settlement(
        ok=row["ok"],
        result=row["body"],
        result_items=row["items"],
        error_kind=row["error_kind"],
        error=row["error"],
        retryable=bool(row["retryable"]),
        effect_possible=bool(row["effect_possible"]),
        tier=row["tier"],
        executor_attempts=row["executor_attempts"] or 0,
        duration_ms=row["duration_ms"] or 0.0,
        details=row["details"] or {},
    )


def _row(row: DictRow) -> CallRow:
    contents = {
        name: None if row[name] is None else orjson.loads(row[name])
        for name in ("args", "context", "result")
    }
    return CallRow.model_validate({**row, **contents})
