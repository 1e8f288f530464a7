"""The ledger of tool calls in PostgreSQL.

A call runs under a lease that its owner (one process) renews; a running call whose lease is over
has lost its owner. Attempts are numbered, so that an owner that was only slow cannot overwrite what
came after it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import orjson
from psycopg.rows import DictRow

from backends.postgres.leases import renew
from backends.postgres.pool import Database
from backends.postgres.purging import purge
from backends.tools import statements
from contracts.errors import DatabaseUnavailable
from contracts.tools.api import Decision
from contracts.tools.ledger import (
    CallFilter,
    CallIntent,
    CallPage,
    CallRow,
    RecordedCall,
    Settlement,
    StoredResult,
    ToolUsageEvent,
)

SLOW_TIMEOUT_S = 5.0
INSERT_ATTEMPTS = 3
_SETTLED = (
    "ok", "error_kind", "error", "details", "retryable", "effect_possible", "tier", "attempts",
    "duration_ms", "body", "items",
)  # fmt: skip
_NOT_YET: dict[str, Any] = dict.fromkeys(
    ("leased_by", "lease_s", "ok", "error_kind", "error", "retryable")
)


@dataclass(frozen=True)
class LedgerLimits:
    """Bounds of the ledger, most in seconds.

    `lease_s` is a lease, `grace_s` the time after it before a call counts as abandoned; `batch`
    abandoned calls are ended at a time.
    """

    lease_s: float = 8.0
    grace_s: float = 4.0
    keep_results_s: float = 86_400.0
    keep_calls_days: int = 90
    keep_versions_days: int | None = None
    approval_valid_s: float = 3_600.0
    batch: int = 500


class PostgresToolLedger:
    """Implements the ToolLedger port for one holder of leases, normally this process."""

    def __init__(
        self,
        database: Database,
        limits: LedgerLimits | None = None,
        *,
        leased_by: UUID | None = None,
    ) -> None:
        self._database = database
        self._limits = limits or LedgerLimits()
        self._leased_by = leased_by or uuid4()

    def reconfigure(self, limits: LedgerLimits) -> None:
        """Changes the limits for later calls."""
        self._limits = limits

    async def find(self, microdao_id: str, call_id: str) -> RecordedCall | None:
        """Returns the call that holds this id."""
        found = await self._database.run(
            statements.FIND,
            {"microdao_id": microdao_id, "call_id": call_id},
            microdao_id=microdao_id,
        )
        return _recorded(found[0]) if found else None

    async def claim(self, intent: CallIntent) -> RecordedCall | None:
        """Records durably that the call begins. Returns None, or the call that holds the id."""
        return await self._insert(intent, {"state": "running", **self._lease()})

    async def await_approval(self, intent: CallIntent) -> RecordedCall | None:
        """Records that the call waits for approval. Returns None, or the call that holds the id."""
        return await self._insert(intent, {"state": "awaiting_approval"})

    async def refuse(self, intent: CallIntent, decision: Decision) -> None:
        """Records a refusal."""
        values = {
            "state": "refused",
            "ok": False,
            "error_kind": decision.error_kind,
            "error": decision.reason,
            "retryable": decision.retryable,
            "args": intent.args if intent.keep_args else None,
            "context": None,
        }
        await self._changed(
            intent.microdao_id, statements.INSERT, {**vars(intent), **_NOT_YET, **values}
        )

    async def take_over(self, call: RecordedCall) -> bool:
        """Begins the next attempt of a call; False if another process was faster."""
        return await self._changed(
            call.microdao_id, statements.TAKE_OVER, {**vars(call), **self._lease()}
        )

    async def settle(
        self, microdao_id: str, record: UUID, attempt: int, settlement: Settlement
    ) -> bool:
        """Ends a running attempt; False if the call was settled or taken over meanwhile."""
        values = {"microdao_id": microdao_id, "id": record, "attempt": attempt}
        return await self._changed(
            microdao_id, statements.SETTLE, {**self._settled(settlement), **values}
        )

    async def record(self, intent: CallIntent, settlement: Settlement) -> UUID | None:
        """Records a finished `read`. Returns its record's id, or None if the id is taken."""
        values = {**vars(intent), **self._settled(settlement)}
        rows = await self._database.run(statements.RECORD, values, microdao_id=intent.microdao_id)
        return rows[0]["id"] if rows else None

    async def decide_approval(self, microdao_id: str, call_id: str, *, granted: bool) -> bool:
        """Grants or rejects a waiting call; False if none of that id waits for a decision."""
        values = {
            "microdao_id": microdao_id,
            "call_id": call_id,
            "approval": "granted" if granted else "rejected",
            "valid_s": self._limits.approval_valid_s,
        }
        return await self._changed(microdao_id, statements.DECIDE_APPROVAL, values)

    async def renew(self, records: Collection[UUID]) -> None:
        """Renews the leases of calls that this process runs."""
        await renew(self._database, statements.RENEW, records, **self._lease())

    async def settle_abandoned(self) -> Sequence[ToolUsageEvent]:
        """Ends calls whose owners are gone and returns their events."""
        values = {"grace_s": self._limits.grace_s, "at_most": self._limits.batch}
        async with self._database.transaction(timeout_s=SLOW_TIMEOUT_S) as connection:
            rows = await (await connection.execute(statements.SETTLE_ABANDONED, values)).fetchall()
        return [ToolUsageEvent(**row, tool_name=row["tool_id"], ok=False) for row in rows]

    async def purge(self) -> int:
        """Removes results, calls and versions that have expired; returns the number of rows."""
        limits = self._limits
        calls = await purge(self._database, statements.PURGE, days=limits.keep_calls_days)
        versions = statements.PURGE_VERSIONS
        return calls + await purge(self._database, versions, days=limits.keep_versions_days)

    async def list_calls(self, wanted: CallFilter, *, show_waiting_args: bool = False) -> CallPage:
        """Returns a page of the audit."""
        values = {
            **wanted.model_dump(),
            "limit": wanted.limit + 1,
            "show_waiting": show_waiting_args,
        }
        async with self._database.transaction(
            microdao_id=wanted.microdao_id, timeout_s=SLOW_TIMEOUT_S
        ) as connection:
            rows = await (await connection.execute(statements.LIST, values)).fetchall()
        calls = [_row(row) for row in rows[: wanted.limit]]
        return CallPage(calls=calls, next_cursor=calls[-1].id if len(rows) > wanted.limit else None)

    async def read_result(self, microdao_id: str, result: UUID) -> StoredResult | None:
        """Returns a whole result that is still kept."""
        values = {"microdao_id": microdao_id, "id": result}
        async with self._database.transaction(
            microdao_id=microdao_id, timeout_s=SLOW_TIMEOUT_S
        ) as connection:
            row = await (await connection.execute(statements.READ_RESULT, values)).fetchone()
        return None if row is None else StoredResult(**row)

    async def _insert(self, intent: CallIntent, values: dict[str, Any]) -> RecordedCall | None:
        """Inserts the call, or returns the one that was first.

        A row of this very intent is an insertion whose answer got lost.
        """
        values = {**vars(intent), **_NOT_YET, **values}
        for _ in range(INSERT_ATTEMPTS):
            if await self._changed(intent.microdao_id, statements.INSERT, values):
                return None
            holder = await self.find(intent.microdao_id, intent.call_id)
            if holder is not None:
                return None if holder.id == intent.id else holder
        raise DatabaseUnavailable("the call's record changes all the time: retry")

    async def _changed(self, microdao_id: str, statement: str, values: dict[str, Any]) -> bool:
        return bool(await self._database.run(statement, values, microdao_id=microdao_id))

    def _lease(self) -> dict[str, Any]:
        return {"leased_by": self._leased_by, "lease_s": self._limits.lease_s}

    def _settled(self, settlement: Settlement) -> dict[str, Any]:
        details = orjson.dumps(settlement.details).decode() if settlement.details else None
        return {
            **vars(settlement),
            "details": details,
            "result_bytes": settlement.result_bytes,
            "keep_s": self._limits.keep_results_s,
        }


def _recorded(row: DictRow) -> RecordedCall:
    ended = {name: row.pop(name) for name in _SETTLED}
    settlement = Settlement(**ended) if row["state"] == "settled" else None
    return RecordedCall(**row, settlement=settlement)


def _row(row: DictRow) -> CallRow:
    contents = {
        name: None if row[name] is None else orjson.loads(row[name])
        for name in ("args", "context", "result")
    }
    return CallRow.model_validate({**row, **contents})
