"""From `llm.yaml`'s providers to adapters. A new kind of provider is one module here with one class."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import cast

from configs.llm import LLMSettings, ProviderSettings
from contracts.errors import ConfigurationError
from contracts.ports import ChatProvider
from providers.resources import ProviderResources


def build_providers(settings: LLMSettings, resources: ProviderResources) -> dict[str, ChatProvider]:
    """Returns one adapter per configured provider. Must be called on the running event loop.

    Raises:
        ConfigurationError: a `type` that no module implements.
    """
    return {name: _build(name, provider, resources) for name, provider in settings.providers.items()}


def _build(name: str, settings: ProviderSettings, resources: ProviderResources) -> ChatProvider:
    module_name = f"providers.{settings.type}"
    adapter = getattr(import_module(module_name), "Provider", None) if find_spec(module_name) else None
    if adapter is None:
        raise ConfigurationError(
            f"llm.yaml: providers.{name}.type: no adapter `{settings.type}` (a class `Provider` in providers/{settings.type}.py)"
        )
    return cast("ChatProvider", adapter(name, settings, resources))
