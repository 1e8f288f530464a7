"""A replica's side of the limits: spends leases locally, asks the authority when one runs out."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from contracts.errors import RateLimited
from contracts.limits import Caller, Estimate, Reservation, Spent
from services.llm_proxy.leases import Grant, Settlement

MAX_BUDGETS = 50_000
REFUSAL_CACHE_S = 0.1
"""How long a refusal is repeated without asking, so that a throttled caller cannot flood the authority."""


class LeaseSource(Protocol):
    """The authority, wherever it runs."""

    async def lease(self, key: str, limit: int, want: int, settled: Settlement | None) -> Grant:
        """Grants a lease. Raises LimitsUnavailable when it cannot be reached."""


@dataclass(slots=True)
class _Budget:
    limit: int
    lease_id: int = 0
    units: int = 0
    granted: int = 0
    expires: float = 0.0
    left: int = 0
    refused_until: float = 0.0
    retry_after_s: float = 0.0
    refill: asyncio.Task[None] | None = None


class _Counted:
    """A request that was counted when it was admitted."""

    def settle(self, spent: Spent) -> None:
        """Does nothing."""


class LeasedLimiter:
    """Requests per minute and agent, exact across replicas. Implements the Limiter port.

    `limit_of` maps an agent id to its limit, or None for no limit.
    """

    def __init__(self, source: LeaseSource, limit_of: Callable[[str], int | None]) -> None:
        self._source = source
        self._limit_of = limit_of
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()

    async def reserve(self, caller: Caller, _estimate: Estimate) -> Reservation:
        """Counts one request. Raises RateLimited with the limit and when to come back, or LimitsUnavailable."""
        limit = self._limit_of(caller.agent_id)
        if limit is None:
            return _Counted()
        budget = self._budget(caller.agent_id, limit)
        while not _spend(budget):
            if time.monotonic() < budget.refused_until:
                raise self._refusal(caller.agent_id, budget)
            if budget.refill is None:
                budget.refill = asyncio.create_task(self._refill(caller.agent_id, budget))
                budget.refill.add_done_callback(lambda task: _forget_refill(budget, task))
            await asyncio.shield(budget.refill)
        return _Counted()

    async def _refill(self, agent_id: str, budget: _Budget) -> None:
        settled = Settlement(budget.lease_id, budget.units) if budget.lease_id else None
        want = max(1, 2 * (budget.granted - budget.units))
        budget.lease_id, budget.units, budget.granted = 0, 0, 0
        asked = time.monotonic()
        grant = await self._source.lease(f"agent:{agent_id}:requests", budget.limit, want, settled)
        budget.left, budget.retry_after_s = grant.left, grant.retry_after_s
        if grant.units == 0:
            budget.refused_until = time.monotonic() + REFUSAL_CACHE_S
            return
        budget.lease_id, budget.units, budget.granted = grant.lease_id, grant.units, grant.units
        budget.expires = asked + grant.ttl_s

    def _budget(self, agent_id: str, limit: int) -> _Budget:
        budget = self._budgets.get(agent_id)
        if budget is None:
            while len(self._budgets) >= MAX_BUDGETS:
                self._budgets.popitem(last=False)
            budget = self._budgets[agent_id] = _Budget(limit)
        budget.limit = limit
        self._budgets.move_to_end(agent_id)
        return budget

    def _refusal(self, agent_id: str, budget: _Budget) -> RateLimited:
        wait = max(1, math.ceil(budget.retry_after_s))
        return RateLimited(
            f"`{agent_id}` is over its limit of {budget.limit} requests a minute: retry in {wait} s",
            details={"limit": "agent.requests_per_minute", "subject": agent_id, "per_minute": budget.limit, "left": budget.left},
            retry_after_s=wait,
        )


def _forget_refill(budget: _Budget, task: asyncio.Task[None]) -> None:
    budget.refill = None
    if not task.cancelled():
        task.exception()  # read here, because every waiter may have left


def _spend(budget: _Budget) -> bool:
    if budget.units <= 0 or time.monotonic() >= budget.expires:
        return False
    budget.units -= 1
    return True
