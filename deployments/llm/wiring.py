"""The LLM proxy over its adapters, without Ray."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter

from backends.llm.batches import PostgresBatches, PostgresBatchQueue
from backends.llm.idempotency import PostgresIdempotency
from backends.llm.usage_ledger import PostgresUsageLedger
from backends.llm.usage_outbox import PostgresUsageOutbox
from backends.llm.usage_publisher import NatsLLMUsage
from backends.llm.usage_reader import PostgresUsageReader
from backends.llm.usage_spool import UsageSpool
from backends.nats.link import NatsLink
from backends.postgres.pool import Database, PoolLimits
from common.circuit import State
from configs.engines.embedder import EmbedderSettings
from configs.llm.config import BatchSettings, IdempotencySettings, LLMSettings, UsageSettings
from configs.llm.limits import LimitSettings
from contracts.access.principals import Principal, acting_as
from contracts.events import SAMPLE_EVERY_S, EventLog, Sample, failure_event
from contracts.health import Health
from contracts.llm.answers import ProxyResponse
from contracts.llm.embeddings import TokenEmbedder
from contracts.llm.ports import Engine
from contracts.llm.requests import MAX_TIMEOUT_S, ProxyRequest
from contracts.llm.routing import Target
from deployments.graph.resources import Reloadable, Resources, WingEnvironment
from interfaces.http.llm.batches import BatchRoutes, add_batch_routes
from interfaces.http.llm.chat import LLMRoutes, add_limit_routes, llm_router
from interfaces.http.llm.openai import OpenAIRoutes, add_embedding_routes, add_openai_routes
from providers.prices import PriceBook
from providers.registry import ProviderResources, ProviderSlots, build_providers
from providers.routing import RoutingTable
from services.health.dependencies import Dependency, HealthMonitor
from services.llm.attempts import Circuits
from services.llm.batches import Batches, BatchWorker, WorkerSettings
from services.llm.cache import AnswerCache
from services.llm.cached_answers import CachedAnswers
from services.llm.embeddings import Embeddings, embedding_target
from services.llm.gateway import Load
from services.llm.idempotency import Idempotency, IdempotencyTimes
from services.llm.limits.limiter import LeasedLimiter
from services.llm.limits.protocol import Authority
from services.llm.limits.states import LimitStates
from services.llm.proxy import LLMProxy
from services.llm.spillover import Spillover
from services.llm.usage_writer import UsageAnnouncer, UsageWriter

LEDGER_POOL = PoolLimits(min_size=1, max_size=4)
# A pool of its own: neither a large batch nor many idempotency keys may hold up the usage ledger.
ANSWERS_POOL = PoolLimits(min_size=1, max_size=4, statement_timeout_s=5.0)
PURGE_EVERY_S = 600.0


@dataclass(frozen=True)
class LLMPorts:
    """What a replica reaches through Ray's handles. The caller opens and closes it."""

    engine: Engine
    embedder: TokenEmbedder
    authority: Authority


class LLMRuntime:
    """The parts of one process of the LLM proxy. Construct it on the event loop, then `open` it.

    The first `reconfigure` starts the work; no request comes before.
    """

    def __init__(
        self,
        environment: WingEnvironment,
        ports: LLMPorts,
        embedder: EmbedderSettings,
        events: EventLog,
    ) -> None:
        """The caller closes `events`."""
        self._ports = ports
        self._embedder_settings = embedder
        self._events = events
        self._resources = Resources()
        self._name = uuid.uuid4().hex  # identifies this process to limits and ledger
        self._database = Database(
            environment.database_url, events=events, limits=LEDGER_POOL, name="ledger"
        )
        self._link = self._announcer = None
        if environment.nats_url is not None:
            self._link = NatsLink(environment.nats_url, events, name="llm-usage")
            self._announcer = UsageAnnouncer(
                PostgresUsageOutbox(self._database), NatsLLMUsage(self._link), events
            )
        self._usage_journal = UsageSpool(environment.data_dir / "journal", events, name=self._name)
        self._ledger_writer = UsageWriter(
            self._usage_journal,
            PostgresUsageLedger(self._database, events),
            events,
            announcer=self._announcer,
        )
        self._limits = LimitSettings()
        self._limiter = LeasedLimiter(ports.authority, self._limits.of, events, replica=self._name)
        self._monitor = HealthMonitor({}, events)
        self._provider_resources = ProviderResources(
            environment.lookup, ports.engine, ProviderSlots(), environment.proxy_for
        )
        self._providers = Reloadable(MAX_TIMEOUT_S)
        self._circuits, self._spillover = Circuits(self._emit_circuit), Spillover()
        self._proxy: LLMProxy | None = None
        self._answers = AnswersRuntime(
            environment.database_url, events, environment.access.directory.claimed
        )

    async def open(self) -> None:
        """Opens the pool (also while PostgreSQL is away) and the journal.

        Raises:
            ConfigurationError: the journal's directory cannot be written.
        """
        async with Resources() as resources:
            resources.closing(self._providers)
            await resources.closing(self._database).open()
            if self._link is not None and self._announcer is not None:
                resources.closing(self._link).start()
                resources.closing(self._announcer).start()
            await resources.closing(self._ledger_writer).start()
            failed = failure_event(self._events, "metrics.not_sampled")
            resources.repeat(self._sample, SAMPLE_EVERY_S, failed, "llm:metrics")
            resources.closing(self._limiter)
            resources.closing(self._answers)
            resources.push_async_callback(self._stop_watching)
            self._resources = resources.pop_all()

    async def close(self) -> None:
        """Ends batches and limits, writes what the journal holds, then closes the rest."""
        await self._resources.aclose()

    async def reconfigure(
        self, settings: LLMSettings, engines: Mapping[str, Engine] = MappingProxyType({})
    ) -> None:
        """Takes the routes and limits of `llm.yaml`; calls under way keep the old ones.

        `engines` serve the models beside that of the ports' engine, by their names in answers.
        """
        self._provider_resources = replace(self._provider_resources, engines=engines)
        begins = self._proxy is None
        async with Resources() as opened:  # closed if the rest cannot be built
            providers = build_providers(settings, self._provider_resources, opened.closing)
            # In threads: both read the price library, which takes a tenth of a second to load.
            table = await asyncio.to_thread(RoutingTable, settings)
            prices = PriceBook(
                settings, urls={self._embedder_settings.type: self._embedder_settings.address}
            )
            await asyncio.to_thread(prices.warm)
            opened.pop_all()
        self._providers.replace(providers.values())
        # Fallbacks are primaries of their own routes, so these are all targets.
        self._circuits.keep(route.primary for route in table.routes())
        self._limits = settings.limits
        self._limiter.reconfigure(self._limits.of)
        self._limiter.start()
        self._proxy = LLMProxy(
            router=table,
            providers=providers,
            limiter=self._limiter,
            usage=self._usage_journal,
            events=self._events,
            prices=prices,
            circuits=self._circuits,
            spillover=self._spillover,
        )
        self._answers.reconfigure(settings, self._proxy)
        if begins:
            await self._answers.open()
        await self._watch(settings)

    def router(self) -> APIRouter:
        """Returns the routes of the application."""
        answers, embedder = self._answers, self._embedder_settings
        usage = PostgresUsageReader(self._database)
        router = llm_router(LLMRoutes(answers.gateway, usage, self._health, answers.idempotency))
        add_limit_routes(
            router, LimitStates(self._ports.authority, lambda: self._limits.of_subject)
        )
        add_embedding_routes(router, self._embeddings())
        add_openai_routes(
            router, OpenAIRoutes(answers.gateway, (embedder.served_name, embedder.type))
        )
        add_batch_routes(router, BatchRoutes(lambda: answers.batches))
        return router

    def _embeddings(self) -> Embeddings:
        return Embeddings(
            model=self._embedder_settings.served_name,
            target=embedding_target(
                self._embedder_settings.type, self._embedder_settings.physical_name
            ),
            prices=lambda: self._current().prices,
            embedder=self._ports.embedder,
            limiter=self._limiter,
            usage=self._usage_journal,
            events=self._events,
        )

    def _emit_circuit(self, target: Target, state: State) -> None:
        self._events.emit("llm.circuit", provider=target.provider, model=target.name, state=state)

    def _current(self) -> LLMProxy:
        assert self._proxy is not None  # Serve reconfigures before it sends requests
        return self._proxy

    async def _watch(self, settings: LLMSettings) -> None:
        dependencies = {
            "limits": Dependency(self._ports.authority.ping),
            "database": Dependency(self._database.ping, required=False),
        }
        if settings.uses_local_engine():
            dependencies["engine"] = Dependency(self._ports.engine.stats)
        for name in self._provider_resources.engines:
            dependencies[f"engine:{name}"] = Dependency(
                partial(self._probe_engine, name), required=False
            )
        if self._monitor.names == dependencies.keys():
            return  # a new monitor would look unready until its first probes
        await self._monitor.close()
        self._monitor = HealthMonitor(dependencies, self._events)
        self._monitor.start()

    async def _sample(self) -> None:
        spool = self._usage_journal
        samples: list[Sample] = [
            ("daarion_usage_spool_records", {}, spool.pending),
            ("daarion_usage_spool_bytes", {}, spool.size_bytes),
        ]
        self._events.emit("metrics.sampled", samples=samples)

    async def _probe_engine(self, model: str) -> object:
        """Asks the engine as a reload has left it: the monitor outlives a reload."""
        return await self._provider_resources.engine_of(model).stats()

    def _health(self) -> Health:
        return self._monitor.health()  # a reload replaces the monitor

    async def _stop_watching(self) -> None:
        await self._monitor.close()


class AnswersRuntime:
    """Response cache, idempotency keys and batches before the LLM proxy of one replica.

    Construct it on the event loop, `reconfigure` it, then `open` it. `caller_of` reads the claims
    of those who submitted batches.
    """

    def __init__(
        self,
        database_url: str,
        events: EventLog,
        caller_of: Callable[[Mapping[str, Any]], Principal],
        *,
        worker: WorkerSettings | None = None,
        times: IdempotencyTimes | None = None,
    ) -> None:
        self._events = events
        self._caller_of = caller_of
        self._resources = Resources()
        self._database = Database(database_url, events=events, limits=ANSWERS_POOL, name="answers")
        self._batch, self._idempotency = BatchSettings(), IdempotencySettings()
        self._usage = UsageSettings()
        self._cached: CachedAnswers | None = None
        self._load = Load()
        self._keys = PostgresIdempotency(self._database)
        self._queue = PostgresBatchQueue(self._database)
        self._ledger = PostgresUsageLedger(self._database, events)
        self._base = worker or WorkerSettings()
        self.idempotency = Idempotency(
            self._keys, events, lambda: self._idempotency.retention_h * 3600, times
        )
        self._worker = BatchWorker(
            self._queue, self._complete_uncounted, lambda: self._load.calls, events, self._base
        )
        self.batches = Batches(
            PostgresBatches(self._database),
            events,
            self._worker.wake,
            lambda: self._batch.max_waiting,
        )

    def reconfigure(self, settings: LLMSettings, proxy: LLMProxy) -> None:
        """Takes new routes and settings, and forgets cached answers."""
        self._batch, self._idempotency = settings.batch, settings.idempotency
        self._usage = settings.usage
        if self._cached is not None:
            self._cached.retire()
        self._cached = CachedAnswers(proxy, AnswerCache(settings.cache.max_bytes), self._load)
        self._worker.settings = replace(
            self._base,
            concurrency=self._batch.concurrency,
            max_failures=self._batch.max_failures,
        )
        self._worker.wake()

    async def open(self) -> None:
        """Opens the pool (also while PostgreSQL is away) and starts to work on batches."""
        async with Resources() as resources:
            await resources.closing(self._database).open()
            resources.closing(self.idempotency)
            resources.closing(self._worker).start()
            failed = failure_event(self._events, "llm.purge_failed")
            resources.repeat(self._purge, PURGE_EVERY_S, failed, "llm:purge")
            self._resources = resources.pop_all()

    async def close(self) -> None:
        """Puts unfinished batch requests back and releases the keys of unfinished calls."""
        await self._resources.aclose()

    def gateway(self) -> CachedAnswers:
        """The gateway as it is configured now; Serve reconfigures before it sends requests."""
        assert self._cached is not None
        return self._cached

    async def _complete_uncounted(
        self, request: ProxyRequest, request_id: str, claims: Mapping[str, Any]
    ) -> ProxyResponse:
        caller, tenant = self._caller_of(claims), request.metadata
        caller.check(agent_id=tenant.agent_id, microdao_id=tenant.microdao_id, model=request.model)
        with acting_as(caller):
            return await self.gateway().uncounted(request, request_id, caller.credential)

    async def _purge(self) -> None:
        await self._queue.purge(self._batch.retention_days * 86_400)
        await self._keys.purge()
        await self._ledger.purge(self._usage.retention_days)
