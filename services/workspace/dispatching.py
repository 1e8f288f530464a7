"""Hands the messages that wait in the outbox to the agent runtime: at least once, which the runtime makes exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass

from common.tasks import end_tasks
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.workspace.channels import AgentInvoker, ClaimedInvocation, Outbox

POLL_S = 1.0
ATTEMPT_S = 10.0
LEASE_S = 30.0
FIRST_DELAY_S = 0.5
PURGE_EVERY_S = 600.0
AFTER_DEFECT_S = 5.0


@dataclass(frozen=True)
class DispatchLimits:
    """Attempts at once per replica, seconds after which a message is given up, and the longest pause between attempts."""

    max_concurrent: int = 16
    give_up_after_s: float = 900.0
    max_delay_s: float = 30.0


class InvocationDispatcher:
    """Claims what is due and attempts it. An attempt that is cut off is made again when its lease has ended."""

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
        """Begins to dispatch; must be called on the running event loop."""
        self._tasks = [
            asyncio.create_task(self._run(), name="workspace:dispatcher"),
            asyncio.create_task(self._purge(), name="workspace:purge"),
        ]

    def wake(self) -> None:
        """Tells that this process has put something into the outbox."""
        self._wake.set()

    async def close(self) -> None:
        """Ends; attempts under way are cut off and given back, for another replica to make them at once."""
        under_way = dict(self._working)
        await end_tasks([*under_way, *self._tasks])
        for task, claimed in under_way.items():
            if task.cancelled():
                with contextlib.suppress(
                    DaarionError
                ):  # PostgreSQL is away: the lease ends by itself
                    await self._outbox.again(claimed, "the replica that handed it over ended", 0.0)

    async def _run(self) -> None:
        while True:
            try:
                await self._round()
            except Exception as error:  # noqa: BLE001  # messages must not wait for ever because of a defect
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
            self._tell_away(error)
            return 0
        self._away = False
        for one in claimed:
            task = asyncio.create_task(self._attempt(one))
            self._working[task] = one
            task.add_done_callback(self._done)
        return len(claimed)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.pop(task, None)
        if len(self._working) == self._limits.max_concurrent - 1:
            self._wake.set()  # a place is free again
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.emit(
                "workspace.dispatch_defect", error=type(error).__name__, exc_info=error
            )

    async def _attempt(self, claimed: ClaimedInvocation) -> None:
        try:
            await self._hand_over(claimed)
        except (
            DaarionError
        ) as error:  # PostgreSQL is away: the lease ends, and the runtime knows the message already
            self._tell_away(error)

    async def _hand_over(self, claimed: ClaimedInvocation) -> None:
        try:
            await self._invoker.invoke(claimed, Deadline.after(ATTEMPT_S))
        except DaarionError as error:
            await self._refused(claimed, error)
        else:
            await self._outbox.delivered(claimed)

    async def _refused(self, claimed: ClaimedInvocation, error: DaarionError) -> None:
        delay = max(self._delay(claimed.attempts), error.retry_after_s or 0.0)
        if error.retryable and claimed.age_s + delay < self._limits.give_up_after_s:
            await self._outbox.again(claimed, error.message, delay)
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
                self._tell_away(error)
            else:
                if removed:
                    self._events.emit("workspace.purged", rows=removed)

    def _tell_away(self, error: DaarionError) -> None:
        if not self._away:
            self._away = True
            self._events.emit("workspace.dispatch_away", error=error.type)
