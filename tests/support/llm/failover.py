"""An LLM proxy whose targets fail on purpose; deadlines are short only against silence."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from configs.llm.config import LLMSettings
from contracts.errors import DaarionError
from contracts.llm.answers import StreamEnd
from contracts.llm.limits import ANONYMOUS
from contracts.llm.requests import ProxyRequest
from providers.registry import ProviderResources, build_providers
from providers.routing import RoutingTable
from services.llm.proxy import LLMProxy
from tests.support.llm.prices import NoPrices
from tests.support.llm.proxy import CALLER, NoEngine, Recorder

QUESTION = [{"role": "user", "content": "раз два три"}]
ANSWER = "Echo: раз два три"
CALM = {"connect_s": 5, "first_token_s": 30, "idle_s": 30, "total_s": 30}
BRISK = {"connect_s": 5, "first_token_s": 0.3, "idle_s": 0.3, "total_s": 0.4}
"""For providers that will be silent; whoever has to answer in a test gets CALM, so that a busy
machine fails nothing."""
WATCHFUL = {**CALM, "idle_s": 0.3}
"""For providers that will be silent after some tokens."""


class NoLimits:
    """The Limiter port where there is no limit."""

    async def reserve(self, caller, estimate):
        return self

    def settle(self, spent):
        pass


def settings(base_url, *, circuit=None, retry=None, models=None, providers=None):
    """`brisk`, `watchful` and `calm` are providers at one address.

    `first` is the model that fails, `second` and `third` are its fallbacks.
    """
    return LLMSettings.model_validate(
        {
            "providers": {
                "brisk": {"base_url": base_url, "timeouts": BRISK},
                "watchful": {"base_url": base_url, "timeouts": WATCHFUL},
                "calm": {"base_url": base_url, "timeouts": CALM},
                "backup": {"base_url": base_url, "timeouts": CALM},
                "vllm": {"base_url": base_url, "timeouts": CALM, "continuation": "vllm"},
                "never": {"base_url": base_url, "timeouts": CALM, "continuation": "none"},
                "local": {"type": "local", "timeouts": CALM},
                **(providers or {}),
            },
            "models": {
                **{
                    f"{provider}-{name}": {"provider": provider, "name": "first", **more}
                    for provider in ("brisk", "watchful", "calm")
                    for name, more in {
                        "alone": {},
                        "guarded": {"fallbacks": ["second"]},
                        "resumed": {"fallbacks": ["second", "third"], "stream_recovery": "resume"},
                    }.items()
                },
                "second": {"provider": "backup", "name": "second"},
                "third": {"provider": "vllm", "name": "third"},
                "declining": {"provider": "never", "name": "declining"},
                **(models or {}),
            },
            "retry": {"attempts": 2, "backoff_s": 0.01, "max_backoff_s": 0.05, **(retry or {})},
            "circuit": {"failures": 1000, "share": 1, "calls": 1000, **(circuit or {})},
        }
    )


@contextlib.asynccontextmanager
async def failing_proxy(upstream, *, engine=None, prices=None, **options):
    """Yields the service and what it recorded."""
    recorder = Recorder()
    config = settings(upstream.base_url, **options)
    providers = build_providers(config, ProviderResources({}.get, engine or NoEngine()))
    proxy = LLMProxy(
        RoutingTable(config), providers, NoLimits(), recorder, recorder, prices or NoPrices()
    )
    yield proxy, recorder
    for provider in providers.values():
        await provider.close()


def asking(model, **fields):
    return ProxyRequest.model_validate(
        {"model": model, "messages": QUESTION, "metadata": CALLER, **fields}
    )


@dataclass
class CallResult:
    """The result of one call as its caller sees it, whole or streamed."""

    text: str = ""
    reasoning: str = ""
    end: StreamEnd | None = None
    error: DaarionError | None = None
    answered_by: str | None = None
    attempts: list = field(default_factory=list)

    @property
    def outcomes(self):
        return [attempt.outcome for attempt in self.attempts]


async def call_result(proxy, request, *, stream):
    """Makes one call as a route does, and keeps whatever the caller would see."""
    result = CallResult()
    try:
        if not stream:
            answer = await proxy.complete(request, "r", credential=ANONYMOUS)
            result.text, result.answered_by, result.attempts = (
                answer.content,
                answer.model_resolved,
                answer.attempts,
            )
            return result
        opened = await proxy.open_stream(request, "r", credential=ANONYMOUS)
        try:
            async for item in opened.items():
                if isinstance(item, StreamEnd):
                    result.end, result.attempts, result.answered_by = (
                        item,
                        item.attempts,
                        opened.target.name,
                    )
                else:
                    result.text += item.content or ""
                    result.reasoning += item.reasoning or ""
        finally:
            await opened.close()
    except DaarionError as error:
        result.error = error
    return result


def calls_in_flight(proxy):
    """Of every target, by the circuits' count."""
    return sum(row.circuit.in_flight for row in proxy.models().models)
