"""Delivers the outbox's invocations to the agent runtime, at least once.

The runtime makes one run per message, so a repeated delivery does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass

from common.tasks import end_tasks
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.workspace.invocations import AgentInvoker, ClaimedInvocation, Outbox

POLL_EVERY_S = 1.0
ATTEMPT_TIMEOUT_S = 10.0
LEASE_S = 30.0
FIRST_DELAY_S = 0.5
PURGE_EVERY_S = 600.0
AFTER_DEFECT_S = 5.0


@dataclass(frozen=True)
class DispatchLimits:
    """Concurrent attempts per replica, the age at which an invocation is given up, and the longest
    pause between attempts.
    """

    max_concurrent: int = 16
    give_up_after_s: float = 900.0
    max_delay_s: float = 30.0


class InvocationDispatcher:
    """Claims due invocations and attempts them. An attempt that is interrupted is repeated once its
    lease has expired.
    """

    def __init__(
        self, outbox: Outbox, invoker: AgentInvoker, events: EventLog, limits: DispatchLimits
    ) -> None:
        self._outbox = outbox
        self._invoker = invoker
        self._events = events
        self._limits = limits
        self._wake = asyncio.Event()
        self._working: dict[asyncio.Task[None], ClaimedInvocation] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._away = False

    def start(self) -> None:
        """Starts dispatching; must be called on the running event loop."""
        self._tasks = [
            asyncio.create_task(self._run(), name="workspace:dispatcher"),
            asyncio.create_task(self._purge(), name="workspace:purge"),
        ]

    def wake(self) -> None:
        """This process put something into the outbox: claim at once."""
        self._wake.set()

    async def close(self) -> None:
        """Cancels the attempts under way and releases them, so that another replica retries at
        once.
        """
        interrupted = dict(self._working)
        await end_tasks([*interrupted, *self._tasks])
        for task, claimed in interrupted.items():
            if task.cancelled():
                # While PostgreSQL is away nothing is released: the lease expires.
                with contextlib.suppress(DaarionError):
                    await self._outbox.retry_later(claimed, "the replica was closed", 0.0)

    async def _run(self) -> None:
        while True:
            try:
                await self._round()
            except Exception as error:  # noqa: BLE001  # a defect must not end dispatching
                self._events.emit(
                    "workspace.dispatch_defect", error=type(error).__name__, exc_info=error
                )
                await asyncio.sleep(AFTER_DEFECT_S)

    async def _round(self) -> None:
        self._wake.clear()
        free = self._limits.max_concurrent - len(self._working)
        claimed = await self._claim(free) if free > 0 else 0
        if claimed < free or free <= 0:
            await self._pause()

    async def _claim(self, at_most: int) -> int:
        try:
            claimed = await self._outbox.claim(at_most, LEASE_S)
        except DaarionError as error:
            self._note_away(error)
            return 0
        self._away = False
        for one in claimed:
            task = asyncio.create_task(self._attempt(one))
            self._working[task] = one
            task.add_done_callback(self._done)
        return len(claimed)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_EVERY_S):
                await self._wake.wait()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.pop(task, None)
        if len(self._working) == self._limits.max_concurrent - 1:
            self._wake.set()  # there is room for one more
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.emit(
                "workspace.dispatch_defect", error=type(error).__name__, exc_info=error
            )

    async def _attempt(self, claimed: ClaimedInvocation) -> None:
        try:
            await self._hand_over(claimed)
        except DaarionError as error:
            # PostgreSQL is away. The lease expires; the runtime recognises the repeated delivery.
            self._note_away(error)

    async def _hand_over(self, claimed: ClaimedInvocation) -> None:
        try:
            await self._invoker.invoke(claimed, Deadline.after(ATTEMPT_TIMEOUT_S))
        except DaarionError as error:
            await self._refused(claimed, error)
        else:
            await self._outbox.delivered(claimed)

    async def _refused(self, claimed: ClaimedInvocation, error: DaarionError) -> None:
        delay = max(self._delay(claimed.attempts), error.retry_after_s or 0.0)
        if error.retryable and claimed.age_s + delay < self._limits.give_up_after_s:
            await self._outbox.retry_later(claimed, error.message, delay)
            return
        await self._outbox.failed(claimed, error.message)
        self._events.emit(
            "workspace.invocation_failed",
            microdao_id=claimed.microdao_id,
            agent_id=claimed.agent_id,
            message_id=str(claimed.message_id),
            attempts=claimed.attempts,
            error=error.type,
        )

    def _delay(self, attempts: int) -> float:
        longest = min(self._limits.max_delay_s, FIRST_DELAY_S * 2 ** min(attempts - 1, 16))
        return random.uniform(longest / 2, longest)  # noqa: S311  # spreads load, protects nothing

    async def _purge(self) -> None:
        while True:
            await asyncio.sleep(PURGE_EVERY_S)
            try:
                removed = await self._outbox.purge()
            except DaarionError as error:
                self._note_away(error)
            else:
                if removed:
                    self._events.emit("workspace.purged", rows=removed)

    def _note_away(self, error: DaarionError) -> None:
        if not self._away:
            self._away = True
            self._events.emit("workspace.dispatch_away", error=error.type)
