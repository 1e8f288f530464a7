"""Fixtures of the integration tests."""

from tests.support.memory_fixtures import embedder, memory
from tests.support.sandbox_fixtures import host, tier

__all__ = ["embedder", "host", "memory", "tier"]
