"""Prices of models: from `llm.yaml`, else from `genai-prices` by the address of the provider."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from genai_prices import Usage, calc_price

from configs.llm.config import LLMSettings
from configs.llm.limits import PriceSettings
from contracts.llm.answers import TokenUsage
from contracts.llm.routing import Target

MILLION = 1_000_000
REFRESH_S = 300.0
"""Prices of the library depend on date and time of day, so they are refreshed."""
NANO = Decimal("1e-9")
PROBES = (1_000, 200_000, 2_000_000)
"""Token counts that show whether every token costs the same, or the price has steps."""

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Rates:
    """US dollars for one token."""

    fresh: Decimal
    cached: Decimal
    output: Decimal

    def cost(self, usage: TokenUsage) -> Decimal:
        cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
        return (
            (usage.prompt_tokens - cached) * self.fresh
            + cached * self.cached
            + usage.completion_tokens * self.output
        )


@dataclass(frozen=True, slots=True)
class _Stepped:
    """A price that depends on the size of the call: the library is asked each time."""

    name: str
    base_url: str

    def cost(self, usage: TokenUsage) -> Decimal | None:
        return _library_cost(
            self.name,
            self.base_url,
            usage.prompt_tokens,
            usage.cached_tokens or 0,
            usage.completion_tokens,
        )


class PriceBook:
    """The Prices port over one configuration."""

    def __init__(
        self,
        settings: LLMSettings,
        *,
        urls: Mapping[str, str | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`urls` are the addresses of providers that `llm.yaml` does not name: the embedder's."""
        self._urls = {
            **(urls or {}),
            **{name: provider.base_url for name, provider in settings.providers.items()},
        }
        self._models = {_key(settings, name) for name in settings.models}
        self._own = {_key(settings, name): _rates(price) for name, price in settings.prices.items()}
        self._clock = clock
        self._known: dict[_Key, _Rates | _Stepped | None] = {}
        self._forget_at = 0.0

    def warm(self) -> None:
        """Looks up every model, so that no call waits for it; takes some tens of milliseconds."""
        for key in self._models:
            self._from_library(key)

    def cost(self, target: Target, usage: TokenUsage) -> Decimal | None:
        """Returns US dollars for `usage`, to a billionth, or None if the price is unknown."""
        key = (target.provider, target.name)
        rates = self._own.get(key) or self._from_library(key)
        cost = None if rates is None else rates.cost(usage)
        return None if cost is None else cost.quantize(NANO)

    def _from_library(self, key: _Key) -> _Rates | _Stepped | None:
        now = self._clock()
        if now >= self._forget_at:
            self._known.clear()
            self._forget_at = now + REFRESH_S
        if key not in self._known:
            self._known[key] = _looked_up(key[1], self._urls.get(key[0]))
        return self._known[key]


@lru_cache(maxsize=1_024)
def context_tokens(name: str, base_url: str | None) -> int | None:
    """Returns the context window that the library knows for a model at that address, or None."""
    try:
        return (
            None
            if base_url is None
            else calc_price(
                Usage(input_tokens=1), name, provider_api_url=base_url
            ).model.context_window
        )
    except (LookupError, ValueError):  # see _library_cost
        return None


def _key(settings: LLMSettings, name: str) -> _Key:
    if name in settings.models:
        model = settings.models[name]
        return model.provider, model.name
    provider, _, physical = name.partition("/")
    return provider, physical


def _rates(price: PriceSettings) -> _Rates:
    cached = price.input if price.cached_input is None else price.cached_input
    return _Rates(price.input / MILLION, cached / MILLION, price.output / MILLION)


def _looked_up(name: str, base_url: str | None) -> _Rates | _Stepped | None:
    if base_url is None:
        return None
    costs = [_probe(name, base_url, size) for size in PROBES]
    if None in costs:
        return None
    first = costs[0]
    return first if all(_close(first, other) for other in costs[1:]) else _Stepped(name, base_url)


def _probe(name: str, base_url: str, size: int) -> _Rates | None:
    """The cost of one token in a call of `size` tokens of each kind."""
    fresh = _library_cost(name, base_url, size, 0, 0)
    cached = _library_cost(name, base_url, size, size, 0)
    whole = _library_cost(name, base_url, size, 0, size)
    if fresh is None or cached is None or whole is None:
        return None
    return _Rates(fresh / size, cached / size, (whole - fresh) / size)


def _close(one: _Rates | None, other: _Rates | None) -> bool:
    assert one is not None
    assert other is not None
    pairs = ((one.fresh, other.fresh), (one.cached, other.cached), (one.output, other.output))
    return all(abs(a - b) <= NANO / MILLION for a, b in pairs)


def _library_cost(
    name: str, base_url: str, prompt: int, cached: int, completion: int
) -> Decimal | None:
    usage = Usage(
        input_tokens=prompt, cache_read_tokens=min(cached, prompt), output_tokens=completion
    )
    try:
        return calc_price(usage, name, provider_api_url=base_url).total_price
    except (LookupError, ValueError):  # provider or model, or the price of such tokens, is unknown
        return None
