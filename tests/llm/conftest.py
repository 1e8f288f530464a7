"""An upstream, and adapters that call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest_asyncio

from configs.llm.config import ProviderSettings
from providers.openai_compatible import OpenAICompatibleProvider
from providers.registry import ProviderResources
from tests.support.llm.openai_calls import KEY
from tests.support.llm.upstream import ScriptedUpstream


class NoEngine:
    """Stands in for the in-cluster engine, which this adapter never calls."""


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest_asyncio.fixture
async def make_provider() -> AsyncIterator[Callable[..., OpenAICompatibleProvider]]:
    """Makes adapters and closes them."""
    made: list[OpenAICompatibleProvider] = []

    def build(
        base_url: str, *, key: str | None = KEY, own_secret: str | None = None, **settings: Any
    ) -> OpenAICompatibleProvider:
        resources = ProviderResources(
            {"UPSTREAM_KEY": key, "DAARION_INTERNAL_SECRET": own_secret}.get, NoEngine()
        )
        made.append(
            OpenAICompatibleProvider(
                "openai",
                ProviderSettings(base_url=base_url, api_key_env="UPSTREAM_KEY", **settings),
                resources,
            )
        )
        return made[-1]

    yield build
    for provider in made:
        await provider.close()


@pytest_asyncio.fixture
async def provider(
    make_provider: Callable[..., OpenAICompatibleProvider], upstream: ScriptedUpstream
) -> OpenAICompatibleProvider:
    return make_provider(upstream.base_url)
