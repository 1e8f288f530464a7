"""Runs periodic work: each job in one process at a time, under a lease that is renewed while it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from common.tasks import end_tasks
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.memory.ports import Leases, Upkeep

LEASE_S = 60.0
RENEW_S = 20.0


class UpkeepRunner:
    """A task per job; a failure is an event, and the job runs again after its interval."""

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
        """Stops the jobs and gives their leases back."""
        await end_tasks(self._tasks)

    async def _repeat(self, job: Upkeep) -> None:
        while True:
            try:
                await self._once(job)
            except DaarionError as error:
                self._events.emit("memory.upkeep_failed", job=job.name, error=error.type)
            except Exception as error:  # noqa: BLE001  # a defect in one run must not end the job for good
                self._events.emit(
                    "memory.upkeep_defect", job=job.name, error=type(error).__name__, exc_info=error
                )
            await asyncio.sleep(job.interval_s)

    async def _once(self, job: Upkeep) -> None:
        if not await self._leases.take(job.name, LEASE_S):
            return
        renewal = asyncio.create_task(self._renew(job.name))
        try:
            await job.run()
        finally:
            renewal.cancel()  # not awaited: a cancellation of this very task could get lost there
            with contextlib.suppress(DaarionError):
                await self._leases.give_back(job.name)

    async def _renew(self, name: str) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(DaarionError):
                await self._leases.take(name, LEASE_S)
