"""What every provider of one replica shares: the pooled HTTP client, the secrets, the in-cluster engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from contracts.ports import Engine

KEEPALIVE_S = 60.0
DNS_CACHE_S = 30


@dataclass(frozen=True)
class ProviderResources:
    """`secret` looks a key up by its variable's name; `engine` serves providers of type `local`."""

    secret: Callable[[str], str | None]
    engine: Engine

    def session(self, provider: str, max_connections: int) -> aiohttp.ClientSession:
        """Returns a new pooled client for one provider. Must be called on the running event loop."""
        connector = aiohttp.TCPConnector(
            limit=max_connections, limit_per_host=0, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=DNS_CACHE_S, enable_cleanup_closed=True
        )
        return aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"daarion-serve ({provider})"},
            max_field_size=32_768,
        )
