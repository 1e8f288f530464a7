"""What the providers of one replica share: secrets, proxies, the in-cluster engine, call limits."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from anyio import CapacityLimiter

from configs.proxies import no_proxy
from contracts.llm.ports import Engine


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

    `proxy_for` returns the environment's forward proxy for a URL (`Environment.proxy_for`).
    """

    secret: Callable[[str], str | None]
    engine: Engine
    slots: ProviderSlots = field(default_factory=ProviderSlots)
    proxy_for: Callable[[str], str | None] = no_proxy
