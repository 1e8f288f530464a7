"""Builds the adapters of `llm.yaml`'s providers from what those of one replica share.

A new kind of provider is one module with one class.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import cast

from anyio import CapacityLimiter

from configs.llm.config import LLMSettings, ProviderSettings
from configs.proxies import no_proxy
from contracts.errors import ConfigurationError
from contracts.llm.ports import ChatProvider, Engine


class ProviderSlots:
    """Bounds the calls in progress of each provider.

    It outlives a reload, so that old and new calls together stay within the bound.
    """

    def __init__(self) -> None:
        self._limiters: dict[str, CapacityLimiter] = {}

    def of(self, provider: str, limit: int) -> CapacityLimiter:
        """Returns the provider's limiter, now with `limit` slots. Call it on the running event
        loop.
        """
        limiter = self._limiters.setdefault(provider, CapacityLimiter(limit))
        limiter.total_tokens = limit
        return limiter

    def keep(self, providers: Container[str]) -> None:
        """Drops the limiters of other providers once they have no calls in progress."""
        self._limiters = {
            name: limiter
            for name, limiter in self._limiters.items()
            if name in providers or limiter.borrowed_tokens
        }


@dataclass(frozen=True)
class ProviderResources:
    """`secret` reads a variable of the environment, `engine` serves providers of type `local`.

    `engines` serve the models that have another engine, by the names in answers.

    `proxy_for` returns the environment's forward proxy for a URL (`Environment.proxy_for`).
    """

    secret: Callable[[str], str | None]
    engine: Engine
    slots: ProviderSlots = field(default_factory=ProviderSlots)
    proxy_for: Callable[[str], str | None] = no_proxy
    engines: Mapping[str, Engine] = field(default_factory=dict)

    def engine_of(self, model: str) -> Engine:
        """Returns the engine that serves `model`, by its name in answers."""
        return self.engines.get(model, self.engine)


def build_providers(
    settings: LLMSettings,
    resources: ProviderResources,
    closing: Callable[[ChatProvider], ChatProvider] = lambda provider: provider,
) -> dict[str, ChatProvider]:
    """Returns one adapter per configured provider. Must be called on the running event loop.

    `closing` gets each adapter before the next one is built: it closes them if that fails.

    Raises:
        ConfigurationError: a `type` that no module implements.
    """
    built = {
        name: closing(_adapter(name, provider)(name, provider, resources))
        for name, provider in settings.providers.items()
    }
    resources.slots.keep(built)
    return built


def check_types(settings: LLMSettings) -> None:
    """Raises ConfigurationError for a provider without an adapter, before any replica builds it."""
    for name, provider in settings.providers.items():
        _adapter(name, provider)


def _adapter(name: str, settings: ProviderSettings) -> Callable[..., ChatProvider]:
    module_name = f"providers.{settings.type}"
    adapter = (
        getattr(import_module(module_name), "Provider", None) if find_spec(module_name) else None
    )
    if adapter is None:
        raise ConfigurationError(
            f"llm.yaml: providers.{name}.type: no adapter `{settings.type}` "
            f"(a class `Provider` in providers/{settings.type}.py)"
        )
    return cast("Callable[..., ChatProvider]", adapter)
