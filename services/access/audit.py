"""Writes the audit trail of one process: refusals, and how actions of operators ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextlib import suppress

from common.periodic import start_periodic
from common.tasks import end_tasks
from contracts.access.audit import AuditRecord, AuditStore
from contracts.access.settings import AuditSettings
from contracts.errors import DaarionError
from contracts.events import EventLog, failure_event

FLUSH_S = 5.0
PURGE_S = 3_600.0
MAX_DENIALS = 100
"""Different refusals per `FLUSH_S`; a flood of them writes no more than twenty rows a second."""
MAX_OF_ONE = 10
"""Those of one principal; its further ones are one row, whatever they were refused for."""


class AuditTrail:
    """Queues what need not be stored at once. `settings` are asked before each purge.

    Whoever acts for an operator adds to `store` itself, and does not act when that fails.
    """

    def __init__(
        self, store: AuditStore, events: EventLog, settings: Callable[[], AuditSettings | None]
    ) -> None:
        self.store = store
        self._events = events
        self._settings = settings
        self._pending: dict[Hashable, AuditRecord] = {}
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

    def note(self, record: AuditRecord) -> None:
        """Queues a record; refusals of one principal, action and object become one.

        Those above `MAX_OF_ONE` become one of the action and object `*`. Where too many refusals
        wait the record is dropped, and the count is emitted. Ends of actions need no bound: each
        action was stored before it began.
        """
        key: Hashable = record.id
        denied: list[str] = []
        if record.outcome == "denied":
            key = (record.principal, record.action, record.object)
            waiting = self._pending.values()
            denied = [each.principal for each in waiting if each.outcome == "denied"]
            if key not in self._pending and denied.count(record.principal) >= MAX_OF_ONE:
                rest = {"action": "*", "object": "*", "microdao_id": None, "agent_id": None}
                record, key = record.model_copy(update=rest), (record.principal, "*", "*")
        known = self._pending.get(key)
        if known is not None:
            record = known.model_copy(update={"count": known.count + record.count})
        elif len(denied) >= MAX_DENIALS:
            self._dropped += record.count
            return
        self._pending[key] = record

    async def flush(self) -> None:
        """Writes what was noted. Raises DatabaseUnavailable, and then keeps it."""
        if self._dropped:
            self._events.emit("audit.dropped", count=self._dropped)
            self._dropped = 0
        pending, self._pending = self._pending, {}
        try:
            await self.store.add(list(pending.values()))
        except BaseException:
            for record in pending.values():
                self.note(record)
            raise

    async def _purge(self) -> None:
        await self.store.purge((self._settings() or AuditSettings()).keep_days)
