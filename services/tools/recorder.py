"""Writes the ends of calls to the ledger, whatever happens to the caller, and keeps the leases of running ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from contracts.errors import DaarionError, Internal
from contracts.events import EventLog
from contracts.tools.api import Decision
from contracts.tools.ledger import (
    AbandonedCall,
    CallIntent,
    Settlement,
    ToolLedger,
    ToolUsage,
    ToolUsageEvent,
)

T = TypeVar("T")

RETRY_DELAYS_S = (0.05, 0.2, 0.5)
LATE_RETRY_S = 2.0
LATE_ATTEMPTS = 150
MAX_LATE = 1_000
UPKEEP_INTERVAL_S = 5.0
PURGE_EVERY_S = 600.0
CLOSE_TIMEOUT_S = 5.0
NEVER_RUN = Settlement(
    ok=False,
    error_kind="cancelled",
    error="the caller left before the tool was called",
    retryable=True,
)


class Recorder:
    """Owns the background tasks of the ledger in one replica."""

    def __init__(
        self,
        ledger: ToolLedger,
        usage: ToolUsage,
        events: EventLog,
        *,
        extend_interval_s: float = 2.0,
    ) -> None:
        self._ledger = ledger
        self._usage = usage
        self._events = events
        self._extend_interval_s = extend_interval_s
        self._running: set[UUID] = set()
        self._writing: set[asyncio.Task[Any]] = set()
        self._late = 0
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to prolong leases and to end what others left behind."""
        self._loops = [
            asyncio.create_task(self._prolong(), name="tools:leases"),
            asyncio.create_task(self._end_abandoned(), name="tools:upkeep"),
            asyncio.create_task(self._purge(), name="tools:purge"),
        ]

    async def close(self) -> None:
        """Stops; ends that are being written get a few seconds."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._writing:
            await asyncio.wait(self._writing, timeout=CLOSE_TIMEOUT_S)

    @contextlib.contextmanager
    def lease(self, record: UUID) -> Iterator[None]:
        """While it is held, the lease of that call is prolonged."""
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
        """Waits for a claim; one that came through after its caller had left is settled as cancelled, nothing having run."""
        task = self._spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._spawn(self._unclaim(task, intent, attempt, ours))
            raise

    async def _unclaim(
        self, task: asyncio.Task[T], intent: CallIntent, attempt: int, ours: Callable[[T], bool]
    ) -> None:
        with contextlib.suppress(DaarionError):
            if ours(await task):
                await self.settle(intent, attempt, NEVER_RUN)

    async def settle(self, intent: CallIntent, attempt: int, settlement: Settlement) -> bool:
        """Ends a claimed call and announces it; False when somebody else ended it. Survives the caller's cancellation."""
        return await self._shielded(
            self._ended(intent, settlement, self._settling(intent, attempt, settlement))
        )

    async def record(self, intent: CallIntent, settlement: Settlement) -> UUID | None:
        """The same for a `read`, which was not claimed; returns the id of its record, None when another run was recorded first."""
        recorded: UUID | None = intent.id

        async def write() -> bool:
            nonlocal recorded
            recorded = await self._ledger.record(intent, settlement)
            return recorded is not None

        await self._shielded(self._ended(intent, settlement, write))
        return recorded

    def settle_later(self, intent: CallIntent, attempt: int, settlement: Settlement) -> None:
        """Ends a claimed call whose caller has left."""
        self._spawn(self._ended(intent, settlement, self._settling(intent, attempt, settlement)))

    def record_later(self, intent: CallIntent, settlement: Settlement) -> None:
        """The same for a `read`."""
        self._spawn(self.record(intent, settlement))

    async def refuse(self, intent: CallIntent, decision: Decision) -> None:
        """Records a refusal; without the database it stands all the same, and is told to the event log alone."""
        try:
            await self._ledger.refuse(intent, decision)
        except DaarionError as error:
            self._events.emit(
                "tools.refusal_unrecorded", request_id=intent.request_id, error=error.type
            )

    def _settling(
        self, intent: CallIntent, attempt: int, settlement: Settlement
    ) -> Callable[[], Awaitable[bool]]:
        return lambda: self._ledger.settle(intent.microdao_id, intent.id, attempt, settlement)

    async def _ended(
        self, intent: CallIntent, settlement: Settlement, write: Callable[[], Awaitable[bool]]
    ) -> bool:
        try:
            written = await self._persistently(write)
        except DaarionError as error:
            self._write_late(intent, settlement, write, error)
            return True
        if written:
            self._announce(intent, settlement)
        return written

    async def _persistently(self, write: Callable[[], Awaitable[bool]]) -> bool:
        for delay in RETRY_DELAYS_S:
            try:
                return await write()
            except Internal:
                raise
            except DaarionError:
                await asyncio.sleep(delay)
        return await write()

    def _write_late(
        self,
        intent: CallIntent,
        settlement: Settlement,
        write: Callable[[], Awaitable[bool]],
        error: DaarionError,
    ) -> None:
        """Goes on trying in the background; a claimed call that is never written ends as abandoned."""
        lost = isinstance(error, Internal) or self._late >= MAX_LATE
        self._events.emit(
            "tools.end_lost" if lost else "tools.end_delayed",
            request_id=intent.request_id,
            tool_id=intent.tool_id,
        )
        if not lost:
            self._late += 1
            self._spawn(self._until_written(intent, settlement, write))

    async def _until_written(
        self, intent: CallIntent, settlement: Settlement, write: Callable[[], Awaitable[bool]]
    ) -> None:
        try:
            for _ in range(LATE_ATTEMPTS):
                await asyncio.sleep(LATE_RETRY_S)
                with contextlib.suppress(DaarionError):
                    if await write():
                        self._announce(intent, settlement)
                    return
            self._events.emit(
                "tools.end_lost", request_id=intent.request_id, tool_id=intent.tool_id
            )
        finally:
            self._late -= 1

    async def _shielded(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    async def _prolong(self) -> None:
        while True:
            await asyncio.sleep(self._extend_interval_s)
            if self._running:
                with contextlib.suppress(DaarionError):
                    await self._ledger.extend_leases(tuple(self._running))

    async def _end_abandoned(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_INTERVAL_S)
            with contextlib.suppress(DaarionError):
                while abandoned := await self._ledger.settle_abandoned():
                    for call in abandoned:
                        self._announce_abandoned(call)

    async def _purge(self) -> None:
        while True:
            await asyncio.sleep(PURGE_EVERY_S)
            try:
                await self._ledger.purge()
            except DaarionError as error:
                self._events.emit("tools.purge_failed", error=error.type)

    def _announce(self, intent: CallIntent, settlement: Settlement) -> None:
        event = ToolUsageEvent(
            id=intent.id,
            occurred_at=datetime.now(UTC),
            request_id=intent.request_id,
            agent_id=intent.agent_id,
            microdao_id=intent.microdao_id,
            channel_id=intent.channel_id,
            tool_id=intent.tool_id,
            tool_name=intent.tool_name or intent.tool_id,
            tool_version=intent.tool_version,
            call_id=intent.call_id,
            effect=intent.effect,
            via=intent.via,
            ok=settlement.ok,
            error_kind=settlement.error_kind,
            attempts=settlement.executor_attempts,
            duration_ms=settlement.duration_ms,
            result_bytes=None if settlement.result is None else len(settlement.result.encode()),
        )
        self._tell(event)

    def _announce_abandoned(self, call: AbandonedCall) -> None:
        self._tell(
            ToolUsageEvent(
                id=call.id,
                occurred_at=datetime.now(UTC),
                request_id=None,
                agent_id=call.agent_id,
                microdao_id=call.microdao_id,
                channel_id=None,
                tool_id=call.tool_id,
                tool_name=call.tool_id,
                tool_version=None,
                call_id=call.call_id,
                effect=call.effect,
                via=None,
                ok=False,
                error_kind=call.error_kind,
                attempts=0,
                duration_ms=0,
                result_bytes=None,
            )
        )

    def _tell(self, event: ToolUsageEvent) -> None:
        self._usage.publish(event)
        self._events.emit(
            "tools.call",
            **event.model_dump(mode="json", exclude={"id", "occurred_at", "tool_name"}),
        )
