"""Fixtures of the memory's tests."""

from tests.support.memory.fixtures import embedder, memory

__all__ = ["embedder", "memory"]
