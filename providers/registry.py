"""Builds the adapters of `llm.yaml`'s providers. A new kind of provider is one module with one
class.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import cast

from configs.llm.config import LLMSettings, ProviderSettings
from contracts.errors import ConfigurationError
from contracts.llm.ports import ChatProvider
from providers.resources import ProviderResources


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
