"""The cluster's one limit authority: a named actor around the lease book, and its client."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from backends.llm.usage_reader import UsageSpending
from backends.nats.publisher import NatsEvents, NatsPublisher
from backends.postgres.pool import Database, PoolLimits
from configs.environment import read_environment
from configs.stores import find_stores
from contracts.errors import DaarionError, LimitsUnavailable
from contracts.events import EventLog
from contracts.llm.limits import Limit, LimitKey
from deployments.graph.resources import open_event_log
from services.llm.limits.lease_book import LeaseBook
from services.llm.limits.periods import period_bounds, period_of
from services.llm.limits.protocol import Reply, Report, Standing

PROTOCOL = 5
"""Counted up when messages or duties change, so that new replicas use an authority of their own."""
NAME = f"daarion-limits-{PROTOCOL}"
NAMESPACE = "daarion"
CALL_TIMEOUT_S = 1.0
LEDGER_RETRY_S = 1.0
READERS = 4


class LimitAuthority:
    """Answers from memory; reads earlier spending from the ledger in the background.

    Warns of limits that are nearly used up: by the event `limits.warning` and on NATS.
    """

    def __init__(self) -> None:
        self._book = LeaseBook(uuid.uuid4().hex, time.monotonic())
        self._reads: dict[LimitKey, asyncio.Task[None]] = {}
        self._spending: UsageSpending | None = None
        self._outside: tuple[EventLog, NatsEvents] | None = None
        self._readers = asyncio.Semaphore(READERS)

    async def exchange(self, report: Report) -> Reply:
        """Takes a replica's report and grants leases."""
        reply = self._book.exchange(report, time.monotonic(), time.time())
        self._read_ledger()
        for warning in self._book.take_warnings():
            events, outside = self._open_outside()
            events.emit("limits.warning", **warning.fields())
            outside.publish(warning)
        return reply

    async def standing(self, limits: Sequence[Limit]) -> list[Standing]:
        """Returns how limits stand."""
        now, wall = time.monotonic(), time.time()
        standings = [self._book.standing(limit.key, limit.amount, now, wall) for limit in limits]
        self._read_ledger()
        return standings

    async def ping(self) -> float:
        """Returns the seconds during which nothing is granted yet."""
        return self._book.learning_s(time.monotonic())

    def _read_ledger(self) -> None:
        for key in self._book.unread():
            if key not in self._reads:
                self._reads[key] = asyncio.create_task(self._read(key))

    async def _read(self, key: LimitKey) -> None:
        """Reads the spending under one limit; after a failure the next request reads again."""
        try:
            async with self._readers:
                ledger, wall = await self._ledger(), time.time()
                since, until = period_bounds(key.meter, wall)
                spent = await ledger.spent(key.kind, key.subject, since, until)
                self._book.load(key, period_of(key.meter, wall), spent)
        except DaarionError:
            await asyncio.sleep(LEDGER_RETRY_S)
        finally:
            del self._reads[key]

    async def _ledger(self) -> UsageSpending:
        if self._spending is None:
            database = Database(
                find_stores(read_environment()).database_url,
                events=self._open_outside()[0],
                limits=PoolLimits(min_size=0, max_size=READERS),
            )
            self._spending = UsageSpending(database)
            await database.open()
        return self._spending

    def _open_outside(self) -> tuple[EventLog, NatsEvents]:
        """Returns the event log and the publisher; both live as long as the process."""
        if self._outside is None:
            environment = read_environment()
            events = open_event_log(environment, "limits")
            publisher = NatsPublisher(find_stores(environment).nats_url, events, name="limits")
            publisher.start()
            self._outside = events, NatsEvents(publisher)
        return self._outside


class AuthorityClient:
    """The Authority port over the actor; the first replica creates it, Ray restarts it."""

    def __init__(self) -> None:
        self._actor: Any = None

    async def exchange(self, report: Report) -> Reply:
        """Reports, and returns leases. Raises LimitsUnavailable without an answer in a second."""
        return await self._called("exchange", report)  # type: ignore[no-any-return]

    async def standing(self, limits: Sequence[Limit]) -> list[Standing]:
        """Returns how limits stand. Raises LimitsUnavailable."""
        return await self._called("standing", limits)  # type: ignore[no-any-return]

    async def ping(self) -> None:
        """Raises LimitsUnavailable while the authority does not answer or grants nothing yet."""
        learning_s = await self._called("ping")
        if learning_s > 0:
            raise LimitsUnavailable(
                "the limit authority has just started and learns what replicas hold",
                retry_after_s=learning_s,
            )

    async def _called(self, method: str, *args: Any) -> Any:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(_authority)
                return await getattr(self._actor, method).remote(*args)
        except (RayError, TimeoutError, ValueError):
            self._actor = None
            raise LimitsUnavailable(
                "the limit authority does not answer: retry shortly", retry_after_s=1.0
            ) from None


def _authority() -> Any:
    """Returns the actor's handle. Blocks: call it in a thread."""
    return (
        ray.remote(LimitAuthority)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            max_concurrency=1_000,
        )
        .remote()
    )
