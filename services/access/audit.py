"""Writes the audit trail of one process: administrative actions at once, refusals in bundles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from common.periodic import start_periodic
from common.tasks import end_tasks
from contracts.access.audit import AuditRecord, AuditSettings, AuditStore
from contracts.errors import DaarionError
from contracts.events import EventLog, failure_event

FLUSH_S = 5.0
PURGE_S = 3_600.0
MAX_DENIALS = 30
"""Different refusals per `FLUSH_S`; a flood of them writes no more than six rows a second."""
MAX_PENDING = 1_000


class AuditTrail:
    """Adds to the store. `settings` are asked before each purge."""

    def __init__(
        self, store: AuditStore, events: EventLog, settings: Callable[[], AuditSettings | None]
    ) -> None:
        self.store = store
        self._events = events
        self._settings = settings
        self._pending: dict[tuple[str | None, ...], AuditRecord] = {}
        self._dropped = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to write what is noted, and to purge; must be called on the event loop."""
        failed = failure_event(self._events, "audit.not_written", defect="audit.defect")
        self._tasks = [
            start_periodic(self.flush, FLUSH_S, failed, name="audit:flush"),
            start_periodic(self._purge, PURGE_S, failed, name="audit:purge"),
        ]

    async def close(self) -> None:
        """Stops, and writes the rest if the database answers."""
        await end_tasks(self._tasks)
        with suppress(DaarionError):
            await self.flush()

    async def record(self, record: AuditRecord) -> None:
        """Returns when the record is stored. Raises DatabaseUnavailable: then do not act."""
        await self.store.add([record])

    def note(self, record: AuditRecord) -> None:
        """Queues a record; refusals of one principal, action and object become one.

        Where the queue is full the record is dropped, and the count is emitted.
        """
        key: tuple[str | None, ...] = (record.principal, record.action, record.object)
        is_denial = record.outcome == "denied"
        if not is_denial:
            key = (*key, record.outcome, record.request_id)
        known = self._pending.get(key)
        if known is not None:
            count = known.count + record.count
            self._pending[key] = known.model_copy(update={"count": count})
        elif len(self._pending) < (MAX_DENIALS if is_denial else MAX_PENDING):
            self._pending[key] = record
        else:
            self._dropped += record.count

    async def flush(self) -> None:
        """Writes what was noted. Raises DatabaseUnavailable, and then keeps it."""
        pending, self._pending = self._pending, {}
        try:
            if pending:
                await self.store.add(list(pending.values()))
        except BaseException:
            for record in pending.values():
                self.note(record)
            raise
        finally:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                self._events.emit("audit.dropped", count=dropped)

    async def _purge(self) -> None:
        await self.store.purge((self._settings() or AuditSettings()).keep_days)
