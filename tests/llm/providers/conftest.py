"""A client without the product's mechanisms."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from tests.support.llm.upstream_calls import HEADERS


@pytest_asyncio.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        headers=HEADERS, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=5)
    ) as session:
        yield session
