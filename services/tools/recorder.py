"""Records how calls ended, even if their callers leave, and renews the leases of running calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar
from uuid import UUID

from common.periodic import start_periodic
from common.retry import retry
from common.tasks import end_tasks, spawn
from contracts.access.audit import AuditRecord, Note
from contracts.access.principals import acting
from contracts.errors import DaarionError, Internal
from contracts.events import EventLog, Publisher, failure_event
from contracts.tools.api import Decision
from contracts.tools.ledger import CallIntent, Settlement, ToolLedger, ToolUsageEvent
from services.tools.resume import APPROVAL

T = TypeVar("T")
Write = Callable[[], Awaitable[UUID | None]]

END_PATIENCE_S = 0.75
"""How long a caller waits for a ledger that is away, so that its answer is recorded before."""
LATE_RETRY_S = 2.0
LATE_PATIENCE_S = 300.0
MAX_LATE = 1_000
UPKEEP_INTERVAL_S = 5.0
PURGE_EVERY_S = 600.0
CLOSE_TIMEOUT_S = 5.0
NEVER_RUN = Settlement(
    ok=False,
    error_kind="cancelled",
    error="the caller left before the tool was called",
    retryable=True,
    attempts=0,
)


class ToolRecorder:
    """Writes the ledger for the calls of one replica, and owns the ledger's background tasks."""

    def __init__(
        self,
        ledger: ToolLedger,
        usage: Publisher,
        events: EventLog,
        *,
        renew_every_s: float = 2.0,
        note: Note | None = None,
    ) -> None:
        self._note = note
        self._ledger = ledger
        self._usage = usage
        self._events = events
        self._renew_every_s = renew_every_s
        self._running: set[UUID] = set()
        self._writing: set[asyncio.Task[Any]] = set()
        self._late = 0
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to renew leases, to end abandoned calls and to purge the ledger."""
        failed = failure_event(self._events, None, defect="tools.upkeep_defect")
        not_purged = failure_event(self._events, "tools.purge_failed")
        renew_s = self._renew_every_s
        self._loops = [
            start_periodic(self._renew_leases, renew_s, failed, name="tools:leases"),
            start_periodic(self._end_abandoned, UPKEEP_INTERVAL_S, failed, name="tools:upkeep"),
            start_periodic(self._purge, PURGE_EVERY_S, not_purged, name="tools:purge"),
        ]

    async def close(self) -> None:
        """Stops; ends that are being written get a few seconds."""
        await end_tasks(self._loops)
        if self._writing:
            await asyncio.wait(self._writing, timeout=CLOSE_TIMEOUT_S)

    @contextlib.contextmanager
    def lease(self, record: UUID) -> Iterator[None]:
        """Renews the lease of that call until it is left."""
        self._running.add(record)
        try:
            yield
        finally:
            self._running.discard(record)

    async def claim(
        self,
        work: Coroutine[Any, Any, T],
        intent: CallIntent,
        attempt: int,
        ours: Callable[[T], bool],
    ) -> T:
        """Waits for a claim. If the caller leaves meanwhile, a claim that succeeds is cancelled."""
        task = spawn(work, self._writing)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            spawn(self._unclaim(task, intent, attempt, ours), self._writing)
            raise

    async def _unclaim(
        self, task: asyncio.Task[T], intent: CallIntent, attempt: int, ours: Callable[[T], bool]
    ) -> None:
        with contextlib.suppress(DaarionError):
            if ours(await task):
                await self._end(intent, NEVER_RUN, attempt)

    async def end(
        self, intent: CallIntent, settlement: Settlement, attempt: int | None
    ) -> UUID | None:
        """Records how a call ended, and announces it. Survives the caller's cancellation.

        `attempt` numbers the run of a claimed call; None stands for a `read`, which was not
        claimed. Returns the record's id, or None when another end was recorded first.
        """
        return await asyncio.shield(spawn(self._end(intent, settlement, attempt), self._writing))

    def end_later(self, intent: CallIntent, settlement: Settlement, attempt: int | None) -> None:
        """Does the same in the background, for a caller that has left."""
        spawn(self._end(intent, settlement, attempt), self._writing)

    async def refuse(self, intent: CallIntent, decision: Decision) -> None:
        """Records a refusal. Without the database the refusal stands, in the event log alone."""
        # Calls that wait for approval are no refusals, and a rejection is in the trail already.
        if decision.error_kind == "denied" and decision.rule != APPROVAL:
            self._note_denial(intent)
        try:
            await self._ledger.refuse(intent, decision)
        except DaarionError as error:
            self._events.emit(
                "tools.refusal_unrecorded", request_id=intent.request_id, error=error.type
            )
        self._events.emit(
            "tools.refused",
            request_id=intent.request_id,
            agent_id=intent.agent_id,
            microdao_id=intent.microdao_id,
            tool_id=intent.tool_id,
            rule=decision.rule,
            error_kind=decision.error_kind,
        )

    def _note_denial(self, intent: CallIntent) -> None:
        if self._note is not None:
            self._note(
                AuditRecord(
                    principal=acting().name,
                    action="call",
                    object=f"tools/{intent.tool_id}",
                    outcome="denied",
                    request_id=intent.request_id,
                    microdao_id=intent.microdao_id,
                    agent_id=intent.agent_id,
                )
            )

    async def _end(
        self, intent: CallIntent, settlement: Settlement, attempt: int | None
    ) -> UUID | None:
        async def write() -> UUID | None:
            if attempt is None:
                record = await self._ledger.record(intent, settlement)
            else:
                settled = await self._ledger.settle(
                    intent.microdao_id, intent.id, attempt, settlement
                )
                record = intent.id if settled else None
            if record is not None:
                self._announce(ToolUsageEvent.of(intent, settlement))
            return record

        try:
            return await retry(write, _may_pass, within_s=END_PATIENCE_S, first_s=0.05)
        except DaarionError as error:
            self._write_late(intent, write, lost=isinstance(error, Internal))
            return intent.id

    def _write_late(self, intent: CallIntent, write: Write, *, lost: bool) -> None:
        """Retries in the background; a claimed call that is never written ends as abandoned."""
        lost = lost or self._late >= MAX_LATE
        self._report("tools.end_lost" if lost else "tools.end_delayed", intent)
        if not lost:
            self._late += 1
            spawn(self._until_written(intent, write), self._writing)

    async def _until_written(self, intent: CallIntent, write: Write) -> None:
        try:
            await retry(
                write,
                lambda error: isinstance(error, DaarionError),
                within_s=LATE_PATIENCE_S,
                first_s=LATE_RETRY_S,
                longest_s=LATE_RETRY_S,
            )
        except DaarionError:
            self._report("tools.end_lost", intent)
        finally:
            self._late -= 1

    def _report(self, event: str, intent: CallIntent) -> None:
        self._events.emit(event, request_id=intent.request_id, tool_id=intent.tool_id)

    async def _renew_leases(self) -> None:
        if self._running:
            await self._ledger.renew(tuple(self._running))

    async def _end_abandoned(self) -> bool:
        abandoned = await self._ledger.settle_abandoned()
        for event in abandoned:
            self._announce(event)
        return bool(abandoned)

    async def _purge(self) -> None:
        await self._ledger.purge()

    def _announce(self, event: ToolUsageEvent) -> None:
        self._usage.publish(event)
        self._events.emit(
            "tools.call",
            **event.model_dump(mode="json", exclude={"id", "occurred_at", "tool_name"}),
        )


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, DaarionError) and not isinstance(error, Internal)
