"""The application `llm`: one ingress deployment, `LLMProxy`.

Serve inspects `build`'s annotations, so this module must not postpone them (`from __future__ import annotations`).
"""

import asyncio
import contextlib
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from ray import serve
from ray.serve.deployment import Application

from backends.llm.usage_announcer import UsageAnnouncer
from backends.llm.usage_store import UsageStore
from backends.llm.usage_writer import UsageWriter
from backends.nats.link import NatsLink
from backends.postgres.pool import Database, PoolLimits
from configs.engines.config import load_engines
from configs.environment import read_environment
from configs.llm.config import LLMSettings
from configs.llm.limits import LimitSettings
from configs.stores import find_stores
from configs.yaml_files import load_yaml
from contracts.errors import ConfigurationError
from contracts.health import Health
from contracts.llm.api import MAX_TIMEOUT_S
from contracts.llm.ports import ChatProvider
from contracts.llm.routing import Target
from deployments.engines.app import APPLICATION as ENGINES
from deployments.engines.app import LOCAL_LLM
from deployments.engines.embedder_client import open_embedder
from deployments.engines.llm_client import EngineClient
from deployments.graph.replica import access_control, open_event_log, tune_interpreter
from deployments.llm.answers import AnswersRuntime
from deployments.llm.limit_authority import AuthorityClient
from deployments.llm.metrics import LLMMetrics
from interfaces.http.base.ingress import Ingress
from interfaces.http.llm.batches import BatchRoutes, add_batch_routes
from interfaces.http.llm.chat import LLMRoutes, llm_router
from interfaces.http.llm.embeddings import EmbeddingRoutes, add_embedding_routes
from interfaces.http.llm.limits import LimitRoutes, add_limit_routes
from interfaces.http.llm.openai_chat import OpenAIRoutes, add_openai_routes
from interfaces.http.llm.openai_errors import OPENAI_ERRORS
from providers.prices import PriceBook
from providers.registry import build_providers, check_types
from providers.resources import ProviderResources, Turns
from providers.routing import RoutingTable
from services.health.dependencies import Dependency, HealthMonitor
from services.llm.circuits import Circuits, State
from services.llm.embeddings import Embeddings, embedding_target
from services.llm.limits.limiter import LeasedLimiter
from services.llm.limits.states import LimitStates
from services.llm.proxy import LLMProxy
from services.llm.spillover import Spillover
from services.llm.usage import UsageQueries

APPLICATION = "llm"
DEPLOYMENT = "LLMProxy"
SETTINGS_FILE = "llm.yaml"


_FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+\.yaml$")]


class LLMArgs(BaseModel):
    """`args` of the application.

    `engines_file` has the section `embedder`: the same file as the application `engines` has. `max_concurrent` bounds the
    calls in work per replica; more are answered 503 at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engines_file: _FileName = "engines.yaml"
    max_concurrent: Annotated[int, Field(ge=1)] = 1_000


class LLMReplica:
    """Wires the LLM proxy's ports to their adapters in one replica."""

    async def __init__(self, args: LLMArgs) -> None:  # type: ignore[misc]  # Serve awaits constructors
        tune_interpreter()
        self._args = args
        self._environment = read_environment()
        self._events = open_event_log(self._environment, APPLICATION, [LLMMetrics()])
        database_url = find_stores(self._environment).database_url
        self._database = Database(
            database_url, events=self._events, limits=PoolLimits(min_size=1, max_size=4)
        )
        await self._database.open()
        self._name = uuid.uuid4().hex  # how limits and ledger know this process
        self._open_announcer(find_stores(self._environment).nats_url)
        self._usage = UsageWriter(
            self._database,
            self._environment.data_dir / "journal",
            events=self._events,
            name=self._name,
            announcer=self._announcer,
        )
        await self._usage.start()
        self._engine = EngineClient(LOCAL_LLM, ENGINES)
        self._embedder_settings = load_engines(self._environment, args.engines_file).embedder
        self._embedder = open_embedder(self._embedder_settings, self._environment, own_vectors=True)
        self._authority = AuthorityClient()
        self._limits = LimitSettings()
        self._limiter = LeasedLimiter(
            self._authority, self._limits.of, replica=self._name, events=self._events
        )
        self._monitor = HealthMonitor({})
        self._providers: dict[str, ChatProvider] = {}
        self._circuits, self._spillover = Circuits(self._circuit_turned), Spillover()
        self._turns = Turns()
        self._proxy: LLMProxy | None = None
        self._answers = AnswersRuntime(database_url, self._events)
        self._closing: set[asyncio.Task[None]] = set()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the routes and limits of `llm.yaml`; calls under way end with the ones they began with."""
        settings = LLMSettings.model_validate(user_config)
        begins = self._proxy is None
        replaced, self._providers = self._providers, self._build_providers(settings)
        router = await asyncio.to_thread(
            RoutingTable, settings
        )  # the price library knows contexts, and loads for a tenth of a second
        self._circuits.keep(
            route.primary for route in router.routes()
        )  # every target is some model's own
        prices = PriceBook(
            settings, urls={self._embedder_settings.type: self._embedder_settings.address}
        )
        await asyncio.to_thread(prices.warm)
        self._limits = settings.limits
        self._limiter.reconfigure(self._limits.of)
        self._limiter.start()
        self._proxy = LLMProxy(
            router=router,
            providers=self._providers,
            limiter=self._limiter,
            usage=self._usage,
            events=self._events,
            prices=prices,
            circuits=self._circuits,
            spillover=self._spillover,
        )
        self._answers.reconfigure(settings, self._proxy)
        if begins:
            await self._answers.open()
        await self._watch(settings)
        if replaced:
            task = asyncio.create_task(_close_later(replaced, MAX_TIMEOUT_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        answers = self._answers
        router = llm_router(
            LLMRoutes(
                answers.gateway,
                UsageQueries(UsageStore(self._database)),
                self._health,
                answers.idempotency,
            )
        )
        add_limit_routes(
            router, LimitRoutes(LimitStates(self._authority, lambda: self._limits.of_subject))
        )
        add_embedding_routes(router, EmbeddingRoutes(self._embeddings()))
        embedder = self._embedder_settings
        add_openai_routes(
            router, OpenAIRoutes(answers.gateway, (embedder.served_name, embedder.type))
        )
        add_batch_routes(router, BatchRoutes(lambda: answers.batches))
        return Ingress(
            router,
            access_control(self._environment),
            self._events,
            max_concurrent=self._args.max_concurrent,
            on_shutdown=self._close,
            error_shapes=OPENAI_ERRORS,
        )

    def _embeddings(self) -> Embeddings:
        settings = self._embedder_settings
        return Embeddings(
            model=settings.served_name,
            target=embedding_target(settings.type, settings.physical_name),
            prices=lambda: self._current().prices,
            embedder=self._embedder,
            limiter=lambda: self._current().limiter,
            usage=self._usage,
            events=self._events,
        )

    def _circuit_turned(self, target: Target, state: State) -> None:
        self._events.emit("llm.circuit", provider=target.provider, model=target.name, state=state)

    def _health(self) -> Health:
        return self._monitor.health()  # a reload replaces the monitor

    def _current(self) -> LLMProxy:
        assert self._proxy is not None  # Serve reconfigures before it sends requests
        return self._proxy

    def _build_providers(self, settings: LLMSettings) -> dict[str, ChatProvider]:
        return build_providers(
            settings, ProviderResources(self._environment.secret, self._engine, self._turns)
        )

    async def _watch(self, settings: LLMSettings) -> None:
        dependencies = {
            "limits": Dependency(self._authority.ping),
            "database": Dependency(self._database.ping, required=False),
        }
        if settings.uses_local_engine():
            dependencies["engine"] = Dependency(self._engine_answers)
        if (
            self._monitor.names == dependencies.keys()
        ):  # a reload that changes nothing here must not look unready
            return
        await self._monitor.close()
        self._monitor = HealthMonitor(dependencies)
        self._monitor.start()

    async def _engine_answers(self) -> None:
        await self._engine.stats()

    def _open_announcer(self, nats_url: str | None) -> None:
        self._announcer: UsageAnnouncer | None = None
        self._nats: NatsLink | None = None
        if nats_url is not None:
            self._nats = NatsLink(nats_url, self._events, name="llm-usage")
            self._nats.start()
            self._announcer = UsageAnnouncer(self._database, self._nats, self._events)
            self._announcer.start()

    async def _close(self) -> None:
        await self._monitor.close()
        await self._answers.close()
        await self._limiter.close()
        await self._usage.close()
        if self._announcer is not None and self._nats is not None:
            await self._announcer.close()
            await self._nats.close()
        await self._database.close()
        await self._embedder.close()
        for provider in self._providers.values():
            await provider.close()
        await asyncio.to_thread(self._events.close)


async def _close_later(providers: dict[str, ChatProvider], seconds: float) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(seconds)
    for provider in providers.values():
        await provider.close()


def build(args: LLMArgs) -> Application:
    """Returns the application's graph.

    Raises:
        ConfigurationError: `llm.yaml` or the embedder's section is wrong, or no PostgreSQL is known.
    """
    environment = read_environment()
    find_stores(environment)
    live = live_config(args.model_dump())
    ingress = serve.deployment(
        serve.ingress()(LLMReplica), name=DEPLOYMENT, user_config=live[DEPLOYMENT]
    )
    return ingress.bind(args)


def live_config(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns each deployment's `user_config` from the files as they are now, for a reload without restarts.

    Raises:
        ConfigurationError: `llm.yaml` is wrong, or names another local model than the engines' file.
    """
    environment = read_environment()
    engines = load_engines(environment, LLMArgs.model_validate(args).engines_file)
    settings = load_yaml(environment.config_dir / SETTINGS_FILE, LLMSettings)
    check_types(settings)
    try:
        settings = settings.with_local_model(
            engines.local_llm.served_name, engines.local_llm.engine.max_model_len
        )
    except ValueError as error:
        raise ConfigurationError(f"{SETTINGS_FILE}: {error}") from None
    return {
        DEPLOYMENT: settings.model_dump(mode="json", exclude_unset=True)
    }  # an override inherits what it does not set
