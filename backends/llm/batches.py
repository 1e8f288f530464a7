"""Batches of LLM calls in PostgreSQL.

Tenants' statements name the tenant and row security checks it; work is leased by function.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

from psycopg.rows import DictRow

from backends.postgres.leases import renew
from backends.postgres.pages import read_page
from backends.postgres.pool import Database, PostgresAdapter
from backends.postgres.purging import purge
from contracts.errors import NotFound, OverLimit, RateLimited
from contracts.identity import new_id
from contracts.llm.batches import (
    Batch,
    BatchCounts,
    BatchFilter,
    BatchPage,
    BatchStatus,
    BatchWork,
    Delay,
    ItemResult,
    NewItem,
)

ID_PREFIX = "batch-"
WRITE_TIMEOUT_S = 15.0
LOCK_WAIT_MS = 10_000
SUBMISSIONS_AT_ONCE = 2
"""Submissions that wait for other replicas hold a connection each; the rest is for other work."""
ROWS_AT_ONCE = 500
BYTES_AT_ONCE = 1 << 20
RESULTS_AT_ONCE = 32
RETRY_WHEN_FULL_S = 60.0
WAITING_LIMIT = "microdao.batch_requests_waiting"

WAITING = """
SELECT coalesce(sum(total - succeeded - failed), 0) AS requests FROM llm_batches
WHERE microdao_id = %(microdao_id)s AND ended_at IS NULL AND cancelled_at IS NULL
"""
# Serialises a microDAO's submissions across replicas, so that each counts those before it.
ONE_AT_A_TIME = """
SELECT set_config('lock_timeout', %(wait_ms)s, true),
       pg_advisory_xact_lock(hashtextextended('llm_batches:' || %(microdao_id)s, 0))
"""
TURN = """
INSERT INTO llm_batch_turns AS turns (microdao_id) VALUES (%(microdao_id)s)
ON CONFLICT (microdao_id) DO UPDATE SET served_at = turns.served_at
"""
INSERT_BATCH = (
    "INSERT INTO llm_batches (id, microdao_id, total, submitter)"
    " VALUES (%(id)s, %(microdao_id)s, %(total)s, %(submitter)s)"
)
INSERT_ITEMS = """
INSERT INTO llm_batch_items (
    batch_id, position, microdao_id, custom_id, request, agent_id, channel_id
)
SELECT %(id)s, position, %(microdao_id)s, custom_id, request, agent_id, channel_id
FROM unnest(
    %(positions)s::integer[], %(custom_ids)s::text[], %(requests)s::text[], %(agent_ids)s::text[],
    %(channel_ids)s::text[]
) AS item (position, custom_id, request, agent_id, channel_id)
"""
# A request whose lease has ended counts as pending.
ONE = """
SELECT batches.id, total, succeeded, failed, created_at, cancelled_at, ended_at, (
    SELECT count(*) FROM llm_batch_items AS items
    WHERE items.batch_id = batches.id AND items.state = 'running' AND items.leased_until > now()
) AS running
FROM llm_batches AS batches
WHERE microdao_id = %(microdao_id)s AND id = %(id)s
  AND (%(submitter)s::text IS NULL OR submitter = %(submitter)s)
"""
PAGE = """
SELECT batches.id, total, succeeded, failed, created_at, cancelled_at, ended_at, (
    SELECT count(*) FROM llm_batch_items AS items
    WHERE items.batch_id = batches.id AND items.state = 'running' AND items.leased_until > now()
) AS running
FROM llm_batches AS batches
WHERE microdao_id = %(microdao_id)s
  AND (%(submitter)s::text IS NULL OR submitter = %(submitter)s)
  AND (created_at, id) < (
      coalesce(%(after_time)s::timestamptz, 'infinity'::timestamptz), %(after_id)s::uuid
  )
ORDER BY created_at DESC, id DESC LIMIT %(rows)s
"""
CANCEL = """
UPDATE llm_batches SET cancelled_at = now()
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND ended_at IS NULL AND cancelled_at IS NULL
"""
RESULTS = """
SELECT items.position, items.custom_id, items.result, CASE
    WHEN items.state IN ('succeeded', 'failed') THEN items.state
    WHEN items.state = 'running' AND items.leased_until > now() THEN 'running'
    WHEN batches.cancelled_at IS NOT NULL THEN 'cancelled'
    ELSE 'pending'
END AS status
FROM llm_batch_items AS items JOIN llm_batches AS batches ON batches.id = items.batch_id
WHERE items.microdao_id = %(microdao_id)s AND items.batch_id = %(id)s AND items.position > %(after)s
ORDER BY items.position LIMIT %(rows)s
"""
LEASE = "SELECT * FROM llm_batch_items_lease(%(lease_s)s)"
RENEW = "SELECT llm_batch_items_renew(%(held)s, %(lease_s)s) AS held"
# Drops the request, which is not needed any more and as private as the answer.
FINISH = """
WITH ended AS (
    UPDATE llm_batch_items
    SET state = %(state)s, result = %(result)s, ended_at = now(), request = ''
    WHERE microdao_id = %(microdao_id)s AND batch_id = %(id)s AND position = %(position)s
      AND state = 'running' AND leased_by = %(lease)s
    RETURNING 1
)
UPDATE llm_batches
SET succeeded = succeeded + %(succeeded)s,
    failed = failed + 1 - %(succeeded)s,
    ended_at = CASE WHEN succeeded + failed + 1 = total THEN now() END
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND EXISTS (SELECT FROM ended)
RETURNING ended_at IS NOT NULL AS ended
"""
RELEASE = """
UPDATE llm_batch_items
SET state = 'pending', failures = failures + %(failed)s,
    leased_until = now() + make_interval(secs => %(delay_s)s), stalled_since = CASE
    WHEN %(stalled)s THEN coalesce(stalled_since, now())
    WHEN %(failed)s = 0 THEN stalled_since
END
WHERE microdao_id = %(microdao_id)s AND batch_id = %(id)s AND position = %(position)s
  AND state = 'running' AND leased_by = %(lease)s
"""
PAUSE = """
UPDATE llm_batches SET resume_at = greatest(resume_at, now() + make_interval(secs => %(pause_s)s))
WHERE microdao_id = %(microdao_id)s AND id = %(id)s
"""
PURGE = "SELECT llm_batch_purge(%(retention_s)s, %(at_most)s) AS removed"


class PostgresBatches:
    """Implements BatchStore."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._submissions = asyncio.Semaphore(SUBMISSIONS_AT_ONCE)
        # One lock per microDAO: only one of its submissions at a time takes a connection.
        self._submitting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(
        self, microdao_id: str, items: Sequence[NewItem], max_waiting: int, submitter: str
    ) -> Batch:
        limit = {"limit": WAITING_LIMIT, "subject": microdao_id, "amount": max_waiting}
        if len(items) > max_waiting:
            raise OverLimit(
                f"at most {max_waiting} requests of a microDAO wait in batches, these are "
                f"{len(items)}: submit fewer at once",
                details={**limit, "needed": len(items)},
            )
        values: dict[str, Any] = {
            "id": new_id(),
            "microdao_id": microdao_id,
            "total": len(items),
            "submitter": submitter,
            "wait_ms": str(LOCK_WAIT_MS),
        }
        own = self._submitting.setdefault(microdao_id, asyncio.Lock())
        transaction = self._database.transaction(microdao_id=microdao_id, timeout_s=WRITE_TIMEOUT_S)
        async with own, self._submissions, transaction as connection:
            await connection.execute(ONE_AT_A_TIME, values)
            row = await (await connection.execute(WAITING, values)).fetchone()
            if row is not None and row["requests"] + len(items) > max_waiting:
                waiting = int(row["requests"])
                raise RateLimited(
                    f"{waiting} requests of this microDAO wait in batches, of {max_waiting} at "
                    f"most: {len(items)} more do not fit until some are done",
                    details={**limit, "left": max(0, max_waiting - waiting)},
                    retry_after_s=RETRY_WHEN_FULL_S,
                )
            await connection.execute(INSERT_BATCH, values)
            for part in _parts(items):
                await connection.execute(INSERT_ITEMS, {**values, **part})
            await connection.execute(TURN, values)  # last: leases of the microDAO wait for its row
            stored = await (await connection.execute(ONE, values)).fetchone()
        assert stored is not None  # it was written above
        return _batch(stored)

    async def get(self, microdao_id: str, batch_id: str, submitter: str | None = None) -> Batch:
        values = {"microdao_id": microdao_id, "id": _uuid(batch_id), "submitter": submitter}
        rows = await self._database.run(ONE, values, microdao_id=microdao_id)
        if not rows:
            raise _unknown()
        return _batch(rows[0])

    async def page(self, query: BatchFilter, submitter: str | None = None) -> BatchPage:
        rows, after = await read_page(
            self._database,
            "llm_batches",
            PAGE,
            {"microdao_id": query.microdao_id, "submitter": submitter},
            limit=query.limit,
            cursor=query.cursor,
        )
        return BatchPage(batches=[_batch(row) for row in rows], next_cursor=after)

    async def cancel(self, microdao_id: str, batch_id: str) -> Batch:
        values = {"microdao_id": microdao_id, "id": _uuid(batch_id)}
        await self._database.run(CANCEL, values, microdao_id=microdao_id)
        return await self.get(microdao_id, batch_id)

    async def results(self, microdao_id: str, batch_id: str) -> AsyncIterator[list[ItemResult]]:
        """No connection is held between two of the lists."""
        values: dict[str, Any] = {
            "microdao_id": microdao_id,
            "id": _uuid(batch_id),
            "after": -1,
            "rows": RESULTS_AT_ONCE,
        }
        while True:
            async with self._database.transaction(
                microdao_id=microdao_id, timeout_s=WRITE_TIMEOUT_S
            ) as connection:
                rows = await (await connection.execute(RESULTS, values)).fetchall()
            if not rows:
                return
            yield [ItemResult(row["custom_id"], row["status"], row["result"]) for row in rows]
            values["after"] = rows[-1]["position"]


class PostgresBatchQueue(PostgresAdapter):
    """Implements BatchQueue."""

    async def lease(self, lease_s: float) -> BatchWork | None:
        async with self._database.transaction() as connection:
            row = await (await connection.execute(LEASE, {"lease_s": lease_s})).fetchone()
        return BatchWork(**row) if row else None

    async def renew(self, held: Collection[uuid.UUID], lease_s: float) -> set[uuid.UUID]:
        return await renew(self._database, RENEW, held, lease_s=lease_s)

    async def finish(self, work: BatchWork, result: bytes, *, succeeded: bool) -> bool | None:
        values = {
            **_key(work),
            "result": result.decode(),
            "state": "succeeded" if succeeded else "failed",
            "succeeded": int(succeeded),
        }
        async with self._database.transaction(
            microdao_id=work.microdao_id, timeout_s=WRITE_TIMEOUT_S
        ) as connection:
            row = await (await connection.execute(FINISH, values)).fetchone()
        return None if row is None else bool(row["ended"])

    async def release(self, work: BatchWork, delay: Delay) -> None:
        values = {
            **_key(work),
            "failed": int(delay.failed),
            "stalled": delay.stalled,
            "delay_s": 0.0 if delay.pause_batch else delay.seconds,
            "pause_s": delay.seconds,
        }
        async with self._database.transaction(microdao_id=work.microdao_id) as connection:
            await connection.execute(RELEASE, values)
            if delay.pause_batch:
                await connection.execute(PAUSE, values)

    async def purge(self, retention_s: float) -> int:
        return await purge(self._database, PURGE, retention_s=retention_s)


def _key(work: BatchWork) -> dict[str, Any]:
    return {
        "microdao_id": work.microdao_id,
        "id": work.batch_id,
        "position": work.position,
        "lease": work.lease,
    }


def _parts(items: Sequence[NewItem]) -> Iterator[dict[str, Any]]:
    """Cuts a batch into statements of a bounded size."""
    begin = size = 0
    for end, item in enumerate(items, start=1):
        size += len(item.request)
        if size >= BYTES_AT_ONCE or end - begin >= ROWS_AT_ONCE or end == len(items):
            part = items[begin:end]
            yield {
                "positions": list(range(begin, end)),
                "custom_ids": [item.custom_id for item in part],
                "requests": [item.request.decode() for item in part],
                "agent_ids": [item.agent_id for item in part],
                "channel_ids": [item.channel_id for item in part],
            }
            begin, size = end, 0


def _batch(row: DictRow) -> Batch:
    total, succeeded, failed, running = (
        row["total"],
        row["succeeded"],
        row["failed"],
        row["running"],
    )
    left = total - succeeded - failed - running
    cancelled = row["cancelled_at"] is not None and row["ended_at"] is None
    status: BatchStatus = "in_progress"
    if cancelled:
        status = "cancelling" if running else "cancelled"
    elif row["ended_at"] is not None:
        status = "completed"
    return Batch(
        id=f"{ID_PREFIX}{row['id']}",
        status=status,
        counts=BatchCounts(
            total=total,
            pending=0 if cancelled else left,
            running=running,
            succeeded=succeeded,
            failed=failed,
            cancelled=left if cancelled else 0,
        ),
        created_at=row["created_at"],
        ended_at=row["ended_at"] or (row["cancelled_at"] if status == "cancelled" else None),
    )


def _uuid(batch_id: str) -> uuid.UUID:
    try:
        return uuid.UUID(batch_id.removeprefix(ID_PREFIX))
    except ValueError:
        raise _unknown() from None


def _unknown() -> NotFound:
    return NotFound("this microDAO has no such batch")
