"""Runs periodic jobs, each in one process at a time under a lease that is renewed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from common.periodic import repeating, start_periodic
from common.tasks import end_tasks
from contracts.errors import DaarionError
from contracts.events import EventLog, failure_event
from contracts.memory.background import JobLeases, Upkeep

LEASE_S = 60.0
RENEW_S = 20.0


class UpkeepRunner:
    """One task per job. Failures are emitted and do not stop the job."""

    def __init__(self, jobs: Sequence[Upkeep], leases: JobLeases, events: EventLog) -> None:
        self._jobs = jobs
        self._leases = leases
        self._events = events
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the jobs on the running event loop."""
        self._tasks = [
            start_periodic(
                partial(self._once, job),
                job.interval_s,
                self._failed(job),
                name=f"upkeep:{job.name}",
                at_once=True,
            )
            for job in self._jobs
        ]

    async def close(self) -> None:
        """Stops the jobs and releases their leases."""
        await end_tasks(self._tasks)

    async def _once(self, job: Upkeep) -> None:
        if not await self._leases.lease(job.name, LEASE_S):
            return
        try:
            async with repeating(partial(self._renew, job), RENEW_S, self._failed(job)):
                await job.run()
        finally:
            with contextlib.suppress(DaarionError):
                await self._leases.release(job.name)

    async def _renew(self, job: Upkeep) -> None:
        await self._leases.lease(job.name, LEASE_S)

    def _failed(self, job: Upkeep) -> Callable[[Exception, float], None]:
        return failure_event(
            self._events, "memory.upkeep_failed", defect="memory.upkeep_defect", job=job.name
        )
