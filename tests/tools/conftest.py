"""Fixtures of the tools' tests."""

from tests.support.memory.fixtures import embedder, memory
from tests.support.tools.sandbox_fixtures import host, tier

__all__ = ["embedder", "host", "memory", "tier"]
