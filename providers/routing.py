"""Routing as pure logic: a logical model to its targets, from `llm.yaml`."""

from __future__ import annotations

from collections.abc import Sequence

from configs.llm import DEFAULT_TIMEOUTS, LLMSettings
from contracts.errors import UnknownModel
from contracts.routing import Route, Target, Timeouts


def route_model(settings: LLMSettings, logical_model: str) -> Route:
    """Returns the route of `logical_model`: its own target, then those of its fallbacks, each target once.

    Fallbacks of fallbacks are not followed: the list in the configuration is the whole truth.

    Raises:
        UnknownModel: no such logical model; the message names the known ones.
    """
    model = settings.models.get(logical_model)
    if model is None:
        known = ", ".join(settings.models)
        raise UnknownModel(f"unknown model `{logical_model[:128]}`; known models: {known}")
    names = dict.fromkeys((logical_model, *model.fallbacks))
    targets = dict.fromkeys(_target(settings, name) for name in names)
    return Route(logical_model, tuple(targets), model.fallbacks)


def _target(settings: LLMSettings, logical_model: str) -> Target:
    model = settings.models[logical_model]
    provider = settings.providers[model.provider]
    chosen = model.timeouts.over(provider.timeouts.over(settings.timeouts.over(DEFAULT_TIMEOUTS)))
    return Target(model.provider, model.name, Timeouts(**chosen.model_dump()))


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
