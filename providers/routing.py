"""Routing as pure logic: from a logical model to its targets, by `llm.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common.circuit import CircuitPolicy
from configs.llm.config import LLMSettings, ModelSettings
from configs.llm.failover import (
    DEFAULT_CIRCUIT,
    DEFAULT_FIRST_TOKEN_HANDOVER_S,
    DEFAULT_RETRY,
    DEFAULT_TIMEOUTS,
    TimeoutSettings,
)
from contracts.errors import UnknownModel
from contracts.llm.routing import RetryPolicy, Route, Spill, Target, Timeouts
from providers.prices import context_tokens


def route_model(settings: LLMSettings, logical_model: str) -> Route:
    """Returns the route of `logical_model`: its own target, then its fallbacks', each once.

    Fallbacks of fallbacks are not followed.

    Raises:
        UnknownModel: no such logical model; the message names the known ones.
    """
    model = settings.models.get(logical_model)
    if model is None:
        known = ", ".join(settings.models)
        raise UnknownModel(f"unknown model `{logical_model[:128]}`; known models: {known}")
    targets = _targets(settings, (logical_model, *model.fallbacks))
    spill = _spill(settings, model, targets[0])
    if len(targets) == 1 and spill is None:
        targets = (replace(targets[0], timeouts=targets[0].timeouts.alone()),)
    return Route(logical_model, targets, model.fallbacks, spill, model.stream_recovery)


def _targets(settings: LLMSettings, logical_models: Sequence[str]) -> tuple[Target, ...]:
    """Returns the targets of the named entries; the first of several for one provider's model."""
    found: dict[tuple[str, str], Target] = {}
    for name in logical_models:
        target = _target(settings, name)
        found.setdefault(target.key, target)
    return tuple(found.values())


def _spill(settings: LLMSettings, model: ModelSettings, primary: Target) -> Spill | None:
    if model.spill is None:
        return None
    targets = tuple(
        target for target in _targets(settings, model.spill.to) if target.key != primary.key
    )
    return Spill(targets, model.spill.queue_depth, model.spill.drained_at()) if targets else None


def _target(settings: LLMSettings, logical_model: str) -> Target:
    model = settings.models[logical_model]
    provider = settings.providers[model.provider]
    defaults = DEFAULT_TIMEOUTS
    if provider.type != "local" and not model.reasoning:
        defaults = TimeoutSettings(first_token_handover_s=DEFAULT_FIRST_TOKEN_HANDOVER_S).over(
            defaults
        )
    timeouts = model.timeouts.over(provider.timeouts.over(settings.timeouts.over(defaults)))
    retry = model.retry.over(provider.retry.over(settings.retry.over(DEFAULT_RETRY)))
    circuit = provider.circuit.over(settings.circuit.over(DEFAULT_CIRCUIT))
    return Target(
        model.provider,
        model.name,
        Timeouts(**timeouts.model_dump()),
        RetryPolicy(**retry.model_dump()),
        CircuitPolicy(**circuit.model_dump()),
        logical_model,
        model.reasoning,
        model.context_tokens or context_tokens(model.name, provider.base_url),
    )


class RoutingTable:
    """The routes of one configuration, resolved once."""

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self._routes = {name: route_model(settings, name) for name in settings.models}

    def route(self, logical_model: str) -> Route:
        """Returns the route. Raises UnknownModel."""
        found = self._routes.get(logical_model)
        return found if found is not None else route_model(self._settings, logical_model)

    def routes(self) -> Sequence[Route]:
        """Every route in the configuration's order."""
        return tuple(self._routes.values())
