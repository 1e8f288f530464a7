"""Tells the billing engine of calls: one `usage.llm` message on NATS for each call that the ledger holds.

The row comes first, the message after it and before the journal forgets the record, so that a crash in between repeats the
message instead of losing it. What NATS does not take now is noted in `llm_usage_outbox` and published when it is back; the
ledger never waits for it. A NATS that hangs is asked for an answer before it gets more: the client would keep everything in
memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import nats.errors
import orjson

from backends.nats.link import NatsLink
from backends.postgres.pool import Database
from contracts.errors import DaarionError, Unavailable
from contracts.events import EventLog
from contracts.llm.usage import usage_message

LLM_USAGE_SUBJECT = "usage.llm"
ID_HEADER = "Nats-Msg-Id"
FLUSH_TIMEOUT_S = 1
STATEMENT_TIMEOUT_S = 5.0
BATCH = 500
AT_ONCE = 25
"""Messages after which calls get their turn."""
LOOK_S = 2.0
AWAY_S = 2.0
"""After a failure, calls are noted for so long without trying: a NATS that hangs must not hold up the ledger."""
MAX_PENDING_BYTES = 1_000_000
"""What may wait in the client. Beyond twice that, it would hold up whoever publishes."""
KEEP_DAYS = 7
PURGE_EVERY_S = 60.0
PURGE_ROWS = 5_000

NOTE = """
INSERT INTO llm_usage_outbox (id) SELECT unnest(%(ids)s::uuid[]) ON CONFLICT DO NOTHING
"""
TAKE = """
DELETE FROM llm_usage_outbox
WHERE id IN (SELECT id FROM llm_usage_outbox ORDER BY id LIMIT %(batch)s FOR UPDATE SKIP LOCKED)
RETURNING id
"""
READ = """
SELECT calls.*, (
    SELECT json_agg(json_build_object(
        'provider', provider, 'physical_model', physical_model, 'outcome', outcome, 'latency_ms', latency_ms,
        'prompt_tokens', prompt_tokens, 'completion_tokens', completion_tokens, 'total_tokens', total_tokens,
        'cached_tokens', cached_tokens, 'reasoning_tokens', reasoning_tokens, 'estimated', estimated, 'cost_usd', cost_usd::text
    ) ORDER BY number)
    FROM llm_attempts WHERE call_id = calls.id
) AS tries
FROM llm_usage AS calls WHERE calls.id = ANY (%(ids)s)
"""
PURGE = """
DELETE FROM llm_usage_outbox
WHERE id IN (
    SELECT id FROM llm_usage_outbox WHERE added_at < now() - make_interval(days => %(days)s)
    ORDER BY added_at LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)
"""


class UsageAnnouncer:
    """Publishes over one connection. `start` begins to work off what could not be published before."""

    def __init__(
        self, database: Database, link: NatsLink, events: EventLog, *, look_s: float = LOOK_S
    ) -> None:
        self._database = database
        self._link = link
        self._events = events
        self._look_s = look_s
        self._away = False
        self._try_again_at = 0.0
        self._purge_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Must be called on the running event loop."""
        self._task = asyncio.create_task(self._run(), name="usage-announcer")

    async def close(self) -> None:
        """Stops; what is noted waits for the next process."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def announce(self, records: list[bytes]) -> None:
        """Publishes the calls, or notes them where NATS does not take them.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: they could not be noted either.
        """
        if not await self._published(orjson.loads(record) for record in records):
            async with self._database.transaction(timeout_s=STATEMENT_TIMEOUT_S) as connection:
                await connection.execute(
                    NOTE, {"ids": [UUID(orjson.loads(record)["id"]) for record in records]}
                )

    async def _published(self, calls: Iterable[Mapping[str, Any]]) -> bool:
        """Whether NATS has all of them. After a failure it is left alone for a while, and has to answer before it gets more."""
        if time.monotonic() < self._try_again_at:
            return False
        try:
            client = self._link.client()
            if self._away:
                await client.flush(FLUSH_TIMEOUT_S)
            for number, call in enumerate(calls):
                if client.pending_data_size > MAX_PENDING_BYTES:
                    raise Unavailable("NATS does not take what it was sent")
                await client.publish(
                    LLM_USAGE_SUBJECT,
                    orjson.dumps(usage_message(call), default=str),
                    headers={ID_HEADER: str(call["id"])},
                )
                if number % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)
            await client.flush(FLUSH_TIMEOUT_S)
        except (DaarionError, nats.errors.Error, TimeoutError, OSError) as error:
            self._note_away(error)
            return False
        self._away = False
        return True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            for turn in (self._purge, self._work_off):
                try:
                    while await turn():
                        pass
                except DaarionError:
                    continue
                except Exception as error:  # noqa: BLE001  # a defect in one turn must not end the announcements
                    self._events.emit("usage.announcer_failed", exc_info=error)

    async def _purge(self) -> bool:
        """Forgets a part of what is too old to be told, now and then, also while NATS is away; returns whether there may be more."""
        if time.monotonic() < self._purge_at:
            return False
        async with self._database.transaction(timeout_s=STATEMENT_TIMEOUT_S) as connection:
            expired = (
                await connection.execute(PURGE, {"days": KEEP_DAYS, "rows": PURGE_ROWS})
            ).rowcount
        if expired:
            self._events.emit("usage.events_expired", calls=expired)
        if expired == PURGE_ROWS:
            return True
        self._purge_at = time.monotonic() + PURGE_EVERY_S
        return False

    async def _work_off(self) -> bool:
        """Publishes a batch of what was noted; returns whether there may be more."""
        self._link.client()  # without a connection there is nothing to do
        if time.monotonic() < self._try_again_at:
            return False
        async with self._database.transaction(timeout_s=STATEMENT_TIMEOUT_S) as connection:
            taken = await (await connection.execute(TAKE, {"batch": BATCH})).fetchall()
            calls = (
                await (
                    await connection.execute(READ, {"ids": [row["id"] for row in taken]})
                ).fetchall()
                if taken
                else []
            )
            if calls and not await self._published(calls):
                raise Unavailable("NATS does not take usage events")  # rolls back: they stay noted
        return len(taken) == BATCH

    def _note_away(self, error: BaseException) -> None:
        self._try_again_at = time.monotonic() + AWAY_S
        if not self._away:
            self._away = True
            self._events.emit("usage.not_announced", error=type(error).__name__)
