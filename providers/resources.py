"""What every provider of one replica shares: the secrets, the in-cluster engine, the count of calls under way."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from anyio import CapacityLimiter

from contracts.llm.ports import Engine


class Turns:
    """Of each provider, the calls under way. It outlives a reload, so that old and new calls together stay within the bound."""

    def __init__(self) -> None:
        self._limiters: dict[str, CapacityLimiter] = {}

    def of(self, provider: str, most: int) -> CapacityLimiter:
        """Returns the provider's, which gives `most` turns from now on. Must be called on the running event loop."""
        limiter = self._limiters.setdefault(provider, CapacityLimiter(most))
        limiter.total_tokens = most
        return limiter

    def keep(self, providers: Container[str]) -> None:
        """Forgets every provider but `providers` and those that still have calls under way."""
        self._limiters = {
            name: limiter
            for name, limiter in self._limiters.items()
            if name in providers or limiter.borrowed_tokens
        }


@dataclass(frozen=True)
class ProviderResources:
    """`secret` looks a key up by its variable's name; `engine` serves providers of type `local`."""

    secret: Callable[[str], str | None]
    engine: Engine
    turns: Turns = field(default_factory=Turns)
