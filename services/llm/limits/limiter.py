"""A replica's limiter: reserves in memory and exchanges reports with the authority.

One exchange at a time covers all limits.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

from common.tasks import end_tasks
from contracts.errors import DaarionError, LimitsUnavailable, OverLimit, RateLimited
from contracts.events import EventLog
from contracts.llm.limits import (
    Caller,
    Estimate,
    LimitsOf,
    RateSettings,
    Reservation,
    Spent,
    shown,
)
from services.llm.limits.balance import Balance, Plan, amount
from services.llm.limits.balances import Balances
from services.llm.limits.protocol import HEARTBEAT_S, Authority

MAX_PLANS = 50_000
PATIENCE_S = 1.5
"""How long a call waits while the authority reads spending from the ledger."""
PENDING_PAUSE_S = 0.05
MAX_EXCHANGES = 32
"""Exchanges that a call waits for while other calls take the units first."""

_NOUNS = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "concurrent_calls": "concurrent calls",
    "usd_per_day": "USD a day",
    "usd_per_month": "USD a month",
}


class LeasedLimiter:
    """Implements Limiter, exact across replicas. `limits_of` returns the limits of a caller.

    `replica` names this process in its reports; the usage ledger must use the same name as the
    recorder of its rows.
    """

    def __init__(
        self,
        authority: Authority,
        limits_of: LimitsOf,
        events: EventLog,
        *,
        replica: str | None = None,
    ) -> None:
        self._authority = authority
        self._events = events
        self._away = False
        self._limits_of = limits_of
        self._balances = Balances(replica or uuid.uuid4().hex)
        self._plans: OrderedDict[Caller, tuple[Plan, RateSettings | None]] = OrderedDict()
        self._known_drops = 0
        self._waiting: list[tuple[Plan, Sequence[int]]] = []
        self._turn: asyncio.Future[DaarionError | None]  # ends with the next exchange
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to report, on the running event loop. `reserve` does so as well."""
        if self._pump is None or self._pump.done():
            self._turn = asyncio.get_running_loop().create_future()
            self._pump = asyncio.create_task(self._run(), name="limiter")

    def reconfigure(self, limits_of: LimitsOf) -> None:
        """Takes new limits for further calls; held and spent units stay."""
        self._limits_of = limits_of
        self._plans.clear()

    async def close(self) -> None:
        """Stops, and returns the units that no call holds."""
        if self._pump is None:
            return
        await end_tasks([self._pump])
        self._turn.set_result(_stopping())
        self._balances.leave()
        with suppress(DaarionError):
            await self._exchange(heartbeat=True)

    async def reserve(self, caller: Caller, estimate: Estimate) -> Reservation:
        """Reserves the estimate in every limit of the caller, or in none.

        Raises:
            RateLimited: names the limit, what is left and when to come back.
            OverLimit: a limit is smaller than this call's estimate.
            LimitsUnavailable: the authority is away, or learns after its restart.
        """
        give_up = time.monotonic() + PATIENCE_S
        for _ in range(MAX_EXCHANGES):
            plan = self._plan(caller)
            amounts = [amount(balance, estimate) for balance in plan]
            now = time.monotonic()
            if not plan or self._balances.take(plan, amounts, now, time.time()):
                if self._balances.wants_exchange(plan):
                    self._wake.set()
                return _Reserved(self, plan, amounts, now)
            if (too_large := _larger_than_limit(plan, amounts)) is not None:
                raise _over_limit(*too_large)
            if (refused := self._balances.recently_refused(plan, amounts, now)) is not None:
                balance, units = refused
                if not balance.answer.pending:
                    raise _refusal(balance, units, now)
                await _wait_until_granting(balance, now, give_up)
            await self._next_exchange(plan, amounts)
        raise LimitsUnavailable("the limits are contended: retry shortly", retry_after_s=1.0)

    def settle(self, plan: Plan, amounts: Sequence[int], spent: Spent, taken_at: float) -> None:
        """Settles a reservation; called by the reservation itself."""
        now, wall = time.monotonic(), time.time()
        self._balances.settle(plan, amounts, spent, taken_at=taken_at, now=now, wall=wall)
        if self._balances.frees_slot(plan):
            self._wake.set()

    def _plan(self, caller: Caller) -> Plan:
        if self._known_drops != self._balances.drops:
            self._known_drops = self._balances.drops
            self._plans.clear()
        plan, granted = self._plans.get(caller, (None, None))
        # After a change of the principal its limits are taken anew.
        if plan is None or (granted is not caller.granted and granted != caller.granted):
            if len(self._plans) >= MAX_PLANS:
                self._plans.popitem(last=False)
            plan = self._balances.plan(self._limits_of(caller), time.monotonic())
            self._plans[caller] = plan, caller.granted
        return plan

    async def _next_exchange(self, plan: Plan, amounts: Sequence[int]) -> None:
        """Waits for the answer to the next report, which asks for these amounts."""
        self.start()
        self._waiting.append((plan, amounts))
        self._wake.set()
        if (failure := await asyncio.shield(self._turn)) is not None:
            raise copy.copy(failure)

    async def _run(self) -> None:
        next_heartbeat = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, next_heartbeat - time.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            heartbeat = time.monotonic() >= next_heartbeat
            if heartbeat:
                next_heartbeat = time.monotonic() + HEARTBEAT_S
            await self._exchange_for_waiting(heartbeat=heartbeat)

    async def _exchange_for_waiting(self, *, heartbeat: bool) -> None:
        """Makes one exchange, and gives its outcome to the calls that wait for it."""
        waiting, self._waiting = self._waiting, []
        turn, self._turn = self._turn, asyncio.get_running_loop().create_future()
        failure: DaarionError | None = _stopping()
        try:
            await self._exchange(waiting, heartbeat=heartbeat)
            failure = None
        except DaarionError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # a defect must not end the loop
            failure = LimitsUnavailable(
                "the limits cannot be kept now: retry shortly", retry_after_s=1.0
            )
            self._events.emit("limits.turn_failed", exc_info=error)
        finally:
            turn.set_result(failure)
        if self._away != (failure is not None):
            self._away = failure is not None
            self._events.emit("limits.away" if self._away else "limits.back")

    async def _exchange(
        self, waiting: Sequence[tuple[Plan, Sequence[int]]] = (), *, heartbeat: bool
    ) -> None:
        """Reports and takes the reply; joins first if the authority does not know this replica."""
        for _ in range(3):
            report = self._balances.report(
                waiting, time.monotonic(), time.time(), heartbeat=heartbeat
            )
            reply = await self._authority.exchange(report)
            self._balances.answered(report, reply, time.monotonic())
            if reply.known:
                return
            self._events.emit("limits.joining", generation=reply.generation)
        raise LimitsUnavailable(
            "the limit authority was replaced twice: retry shortly", retry_after_s=1.0
        )


async def _wait_until_granting(refused: Balance, now: float, give_up: float) -> None:
    """Pauses while the authority reads the ledger.

    Raises LimitsUnavailable after `give_up`, and while a restarted authority learns.
    """
    if refused.answer.pending == "learning":
        raise LimitsUnavailable(
            "the limits are being restored after a restart: retry shortly",
            retry_after_s=max(0.1, refused.retry_at - now),
        )
    if now >= give_up:
        raise LimitsUnavailable(
            "what was spent so far cannot be read: retry shortly", retry_after_s=1.0
        )
    await asyncio.sleep(PENDING_PAUSE_S)


def _larger_than_limit(plan: Plan, amounts: Sequence[int]) -> tuple[Balance, int] | None:
    """Returns the first balance whose whole limit is less than the call's amount, and that."""
    pairs = zip(plan, amounts, strict=True)
    return next((pair for pair in pairs if pair[1] > pair[0].limit), None)


class _Reserved:
    """The reservation of one call."""

    __slots__ = ("_amounts", "_at", "_limiter", "_plan", "_settled")

    def __init__(
        self, limiter: LeasedLimiter, plan: Plan, amounts: Sequence[int], at: float
    ) -> None:
        self._limiter, self._plan, self._amounts, self._at = limiter, plan, amounts, at
        self._settled = False

    def settle(self, spent: Spent) -> None:
        """Replaces the reservation by what was spent, once."""
        if not self._settled:
            self._settled = True
            self._limiter.settle(self._plan, self._amounts, spent, self._at)


def _stopping() -> LimitsUnavailable:
    return LimitsUnavailable("this replica stops: retry", retry_after_s=1.0)


def _refusal(balance: Balance, units: int, now: float) -> RateLimited:
    kind, subject, meter = balance.key
    wait = max(1, math.ceil(balance.retry_at - now))
    limit, left, needed = (
        shown(meter, value) for value in (balance.limit, balance.answer.left + balance.free, units)
    )
    text = (
        f"`{subject}` is at its limit of {limit:g} {_NOUNS[meter]}: "
        f"{left:g} left, {needed:g} needed; retry in {wait} s"
    )
    details = {
        "limit": f"{kind}.{meter}",
        "subject": subject,
        "amount": limit,
        "left": left,
        "needed": needed,
    }
    return RateLimited(text, details=details, retry_after_s=wait)


def _over_limit(balance: Balance, units: int) -> OverLimit:
    kind, subject, meter = balance.key
    limit, needed = shown(meter, balance.limit), shown(meter, units)
    text = (
        f"a call of `{subject}` may take at most its limit of {limit:g} {_NOUNS[meter]}, "
        f"and this one could take {needed:g}: ask for less"
    )
    return OverLimit(
        text,
        details={"limit": f"{kind}.{meter}", "subject": subject, "amount": limit, "needed": needed},
    )
