"""Fixtures of the integration tests."""

from tests.support.memory_fixtures import embedder, memory

__all__ = ["embedder", "memory"]
