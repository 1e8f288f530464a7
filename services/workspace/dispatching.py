"""Delivers the outbox's invocations to the agent runtime, at least once.

The runtime makes one run per message, so a repeated delivery does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.periodic import start_periodic
from common.retry import backoff_s
from common.tasks import end_tasks
from common.tracing import SpanKind, continued, span
from contracts.access.principals import Principal, acting_as
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.identity import Tenant
from contracts.workspace.invocations import AgentInvoker, LeasedInvocation, Outbox

POLL_EVERY_S = 1.0
ATTEMPT_TIMEOUT_S = 10.0
LEASE_S = 30.0
FIRST_DELAY_S = 0.5


@dataclass(frozen=True)
class DispatchLimits:
    """Concurrent attempts per replica, the age at which an invocation is given up, and the longest
    pause between attempts.
    """

    max_concurrent: int = 16
    give_up_after_s: float = 900.0
    max_delay_s: float = 30.0


class InvocationDispatcher:
    """Claims due invocations and attempts them for those who posted their messages. An attempt that
    is interrupted is repeated once its lease has expired.
    """

    def __init__(
        self,
        outbox: Outbox,
        invoker: AgentInvoker,
        events: EventLog,
        limits: DispatchLimits,
        caller_of: Callable[[Mapping[str, Any] | None], Principal],
    ) -> None:
        self._outbox = outbox
        self._invoker = invoker
        self._events = events
        self._limits = limits
        self._caller_of = caller_of
        self._wake = asyncio.Event()
        self._working: dict[asyncio.Task[None], LeasedInvocation] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._away = False

    def start(self) -> None:
        """Starts dispatching; must be called on the running event loop."""
        self._tasks = [
            start_periodic(
                self._claim,
                POLL_EVERY_S,
                self._failed,
                name="workspace:dispatcher",
                at_once=True,
                wake=self._wake,
            ),
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
                    await self._outbox.release(claimed, "the replica was closed", 0.0)

    async def _claim(self) -> bool:
        """Attempts what is due; returns whether there may be more, and room for it."""
        free = self._limits.max_concurrent - len(self._working)
        if free <= 0:
            return False
        claimed = await self._outbox.lease(free, LEASE_S)
        self._away = False
        for one in claimed:
            task = asyncio.create_task(self._attempt(one))
            self._working[task] = one
            task.add_done_callback(self._done)
        return len(claimed) == free

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.pop(task, None)
        if len(self._working) == self._limits.max_concurrent - 1:
            self._wake.set()  # there is room for one more
        if not task.cancelled() and (error := task.exception()) is not None:
            # With PostgreSQL away, too, the lease expires and the delivery is repeated, which the
            # runtime recognises.
            self._failed(error)

    async def _attempt(self, claimed: LeasedInvocation) -> None:
        tenant = Tenant(microdao_id=claimed.microdao_id, agent_id=claimed.agent_id)
        parent = continued(claimed.traceparent)
        try:
            with (
                span("workspace.invoke", SpanKind.CLIENT, parent=parent),
                acting_as(self._caller_of(claimed.caller).narrowed(tenant)),
            ):
                await self._invoker.invoke(claimed, Deadline.after(ATTEMPT_TIMEOUT_S))
        except DaarionError as error:
            await self._refused(claimed, error)
        else:
            await self._outbox.delivered(claimed)

    async def _refused(self, claimed: LeasedInvocation, error: DaarionError) -> None:
        own_s = backoff_s(claimed.attempts, FIRST_DELAY_S, self._limits.max_delay_s)
        delay = max(own_s, error.retry_after_s or 0.0)
        if error.retryable and claimed.age_s + delay < self._limits.give_up_after_s:
            await self._outbox.release(claimed, error.message, delay)
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

    def _failed(self, error: BaseException, _seconds: float = 0.0) -> None:
        if not isinstance(error, DaarionError):
            self._events.emit(
                "workspace.dispatch_defect", error=type(error).__name__, exc_info=error
            )
        elif not self._away:
            self._away = True
            self._events.emit("workspace.dispatch_away", error=error.type)
