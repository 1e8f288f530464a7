"""Runs periodic jobs, each in one process at a time under a lease that is renewed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from common.tasks import end_tasks
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.memory.background import Leases, Upkeep

LEASE_S = 60.0
RENEW_S = 20.0


class UpkeepRunner:
    """One task per job. Failures are emitted and do not stop the job."""

    def __init__(self, jobs: Sequence[Upkeep], leases: Leases, events: EventLog) -> None:
        self._jobs = jobs
        self._leases = leases
        self._events = events
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the jobs on the running event loop."""
        self._tasks = [
            asyncio.create_task(self._repeat(job), name=f"upkeep:{job.name}") for job in self._jobs
        ]

    async def close(self) -> None:
        """Stops the jobs and releases their leases."""
        await end_tasks(self._tasks)

    async def _repeat(self, job: Upkeep) -> None:
        while True:
            try:
                await self._once(job)
            except DaarionError as error:
                self._events.emit("memory.upkeep_failed", job=job.name, error=error.type)
            except Exception as error:  # noqa: BLE001  # a defect must not end the job
                self._events.emit(
                    "memory.upkeep_defect", job=job.name, error=type(error).__name__, exc_info=error
                )
            await asyncio.sleep(job.interval_s)

    async def _once(self, job: Upkeep) -> None:
        if not await self._leases.acquire(job.name, LEASE_S):
            return
        renewal = asyncio.create_task(self._renew(job.name))
        try:
            await job.run()
        finally:
            renewal.cancel()  # not awaited: this task's own cancellation could get lost there
            with contextlib.suppress(DaarionError):
                await self._leases.release(job.name)

    async def _renew(self, name: str) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(DaarionError):
                await self._leases.acquire(name, LEASE_S)
