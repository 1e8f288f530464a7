"""What lies before the LLM proxy in one replica, apart from Serve: cache, idempotency keys, batches."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from backends.llm.batches import PostgresBatches, PostgresBatchQueue
from backends.llm.idempotency import PostgresIdempotency
from backends.postgres.pool import Database, PoolLimits
from common.tasks import end_tasks
from configs.llm.config import LLMSettings
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.llm.api import ProxyRequest, ProxyResponse
from services.llm.batches import Batches, BatchWorker, WorkerSettings
from services.llm.cache import AnswerCache
from services.llm.gateway import Gateway, Load
from services.llm.idempotency import Idempotency, IdempotencyTimes
from services.llm.proxy import LLMProxy

# Connections of its own: neither a large batch nor a crowd of keys may keep the usage ledger from being written.
POOL = PoolLimits(min_size=1, max_size=4, statement_timeout_s=5.0)
PURGE_EVERY_S = 600.0


class AnswersRuntime:
    """Construct it on the event loop, `reconfigure` it, then `open`."""

    def __init__(
        self,
        database_url: str,
        events: EventLog,
        *,
        worker: WorkerSettings | None = None,
        times: IdempotencyTimes | None = None,
    ) -> None:
        self._events = events
        self._database = Database(database_url, events=events, limits=POOL)
        self._settings: LLMSettings | None = None
        self._gateway: Gateway | None = None
        self._load = Load()
        self._keys = PostgresIdempotency(self._database)
        self._queue = PostgresBatchQueue(self._database)
        self._base = worker or WorkerSettings()
        self.idempotency = Idempotency(
            self._keys, events, lambda: self._configured().idempotency.retention_h * 3600, times
        )
        self._worker = BatchWorker(
            self._queue, self._answer, lambda: self._load.calls, events, self._base
        )
        self.batches = Batches(
            PostgresBatches(self._database),
            events,
            self._worker.wake,
            lambda: self._configured().batch.max_waiting,
        )
        self._purging: asyncio.Task[None] | None = None

    def reconfigure(self, settings: LLMSettings, proxy: LLMProxy) -> None:
        """Takes new routes and settings: what was cached under the old ones is forgotten, calls under way end with them."""
        self._settings = settings
        if self._gateway is not None:
            self._gateway.retire()
        self._gateway = Gateway(proxy, AnswerCache(settings.cache.max_bytes), self._load)
        self._worker.settings = replace(
            self._base,
            concurrency=settings.batch.concurrency,
            max_failures=settings.batch.max_failures,
        )
        self._worker.wake()

    async def open(self) -> None:
        """Opens the pool (also while PostgreSQL is away) and starts to work batches off."""
        await self._database.open()
        self._worker.start()
        self._purging = asyncio.create_task(self._purge(), name="llm:purge")

    async def close(self) -> None:
        """Ends what runs, then the pool. Unfinished requests of batches are put back, keys of unfinished calls released."""
        if self._purging is not None:
            await end_tasks([self._purging])
        await self._worker.close()
        await self.idempotency.close()
        await self._database.close()

    def gateway(self) -> Gateway:
        """The gateway as it is configured now."""
        assert self._gateway is not None  # Serve reconfigures before it sends requests
        return self._gateway

    def _configured(self) -> LLMSettings:
        assert self._settings is not None  # as above
        return self._settings

    async def _answer(self, request: ProxyRequest, request_id: str) -> ProxyResponse:
        return await self.gateway().answer(request, request_id)

    async def _purge(self) -> None:
        while True:
            try:
                await self._purge_once()
            except DaarionError as error:
                self._events.emit("llm.purge_failed", error=error.type)
            await asyncio.sleep(PURGE_EVERY_S)

    async def _purge_once(self) -> None:
        await self._queue.purge(self._configured().batch.retention_days * 86_400)
        await self._keys.purge()
