"""A whole LLM proxy without Serve: real adapters, a scripted upstream, ports in memory."""

from __future__ import annotations

import contextlib

import httpx

from backends.telemetry.event_log import ONLY_COUNTED
from configs.llm.config import LLMSettings
from contracts.errors import EngineUnavailable
from contracts.health import Health
from contracts.llm.ports import Condition
from interfaces.http.base.ingress import Ingress
from interfaces.http.llm.chat import LLMRoutes, llm_router
from interfaces.http.llm.openai import OPENAI_ERRORS, OpenAIRoutes, add_openai_routes
from providers.prices import PriceBook
from providers.registry import ProviderResources, build_providers
from providers.routing import RoutingTable
from services.llm.limits.limiter import LeasedLimiter
from services.llm.proxy import LLMProxy
from tests.support.access import access_control
from tests.support.events import RecordedEvents
from tests.support.llm.limits import requests_per_minute
from tests.support.llm.prices import NoPrices
from tests.support.uvicorn_server import JSON

KEY = "sk-secret-0123456789abcdef"
CALLER = {"agent_id": "agent:sofia", "microdao_id": "microdao:7"}


class Recorder:
    """Event log and usage sink in memory."""

    def __init__(self):
        self.events, self.records = [], []

    def emit(self, event, **fields):
        if event not in ONLY_COUNTED:
            self.events.append({"event": event, **fields})

    def begin(self, call):
        return 0

    def record(self, record, ticket):
        self.records.append(record)


class NoEngine:
    """The Engine port while no engine runs."""

    condition = Condition("the local engine is still starting: retry")

    async def chat(self, body, deadline):
        raise EngineUnavailable(self.condition.not_ready)

    async def stream(self, body, deadline):
        raise EngineUnavailable(self.condition.not_ready)
        yield

    async def awake(self, deadline):
        pass

    async def stats(self):
        raise EngineUnavailable(self.condition.not_ready)


def impatient(plays):
    """`plain` and `guarded` with short timeouts, only where the upstream is silent."""
    if not plays.startswith(("silence", "stall")):
        return {}
    short = {
        "provider": "openai",
        "timeouts": {"first_token_s": 0.4, "idle_s": 0.4, "total_s": 0.8},
    }
    return {
        "plain": {**short, "name": "gpt-4.1-mini"},
        "guarded": {**short, "name": "first", "fallbacks": ["spare"]},
    }


def settings(base_url, **models):
    """Two remote providers at one address (`other` has no key set), and the local engine."""
    return LLMSettings.model_validate(
        {
            "providers": {
                "openai": {"base_url": base_url, "api_key_env": "OPENAI_API_KEY"},
                "backup": {"base_url": base_url},
                "keyless": {"base_url": base_url, "api_key_env": "MISSING_API_KEY"},
                "local": {"type": "local"},
            },
            "models": {
                "plain": {"provider": "openai", "name": "gpt-4.1-mini"},
                "guarded": {"provider": "openai", "name": "first", "fallbacks": ["spare"]},
                "spare": {"provider": "backup", "name": "second"},
                "nokey": {"provider": "keyless", "name": "x"},
                "nokey-guarded": {"provider": "keyless", "name": "x", "fallbacks": ["spare"]},
                "here": {"provider": "local", "name": "tiny"},
                **models,
            },
            "timeouts": {"connect_s": 10, "first_token_s": 10, "idle_s": 10, "total_s": 20},
        }
    )


@contextlib.asynccontextmanager
async def proxy_over(base_url, *, limit=None, source=None, limits_of=None, prices=None, **models):
    """Yields the service and what it recorded; `limits_of` counts instead of `limit`, and `prices`
    are those of `llm.yaml`.
    """
    recorder = Recorder()
    config = settings(base_url, **models)
    if prices is not None:
        given = config.model_dump(exclude_unset=True) | {"prices": prices}
        config = LLMSettings.model_validate(given)
    book = NoPrices() if prices is None else PriceBook(config)
    keys = {"OPENAI_API_KEY": KEY}
    providers = build_providers(config, ProviderResources(keys.get, NoEngine()))
    limits_of = limits_of or requests_per_minute(limit)
    limiter = LeasedLimiter(source, limits_of, RecordedEvents())
    yield (
        LLMProxy(RoutingTable(config), providers, limiter, recorder, recorder, book),
        recorder,
    )
    await limiter.close()
    for provider in providers.values():
        await provider.close()


def ingress_of(
    proxy, recorder, *, internal=None, admin=None, max_concurrent=100, usage=None, access=None
):
    """Returns the application's ingress; `access` in place of the secrets."""
    router = llm_router(LLMRoutes(lambda: proxy, usage, lambda: Health(status="starting")))
    add_openai_routes(router, OpenAIRoutes(lambda: proxy, ("embedder", "local")))
    return Ingress(
        router,
        access or access_control(internal, admin),
        recorder,
        max_concurrent=max_concurrent,
        error_shapes=OPENAI_ERRORS,
    )


@contextlib.asynccontextmanager
async def client_of(proxy, recorder, **options):
    """Yields an HTTP client of the application's ingress."""
    transport = httpx.ASGITransport(ingress_of(proxy, recorder, **options))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=JSON
    ) as client:
        yield client
