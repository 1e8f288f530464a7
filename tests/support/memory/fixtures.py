"""Fixtures of the memory's tests; a test module imports what it uses."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.events import RecordedEvents
from tests.support.memory.application import Memory, memory_application
from tests.support.memory.hashing_embedder import HashingEmbedder


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()


@pytest.fixture
async def memory(
    database_url: str, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
) -> AsyncIterator[Memory]:
    async with memory_application(database_url, tmp_path, embedder, events) as application:
        yield application
